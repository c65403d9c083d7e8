//! Buffers moved by one system call, without a copy in this process (`readv(2)`, `writev(2)`, `sendmsg(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Buffers;

/// The kernel takes no more pieces than this in one call (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

impl Buffers {
    /// Reads one record, for example a frame from a tap, into the buffers. The result is its length, or more than
    /// [`len`](Self::len) when the end of it did not fit and is lost.
    ///
    /// # Errors
    /// What `readv(2)` says; `InvalidInput` when there are too many pieces.
    pub fn read_record(&self, fd: BorrowedFd) -> io::Result<usize> {
        let mut beyond = 0_u8;
        let mut pieces = Vec::with_capacity(self.iovecs().len() + 1);
        pieces.extend_from_slice(self.iovecs());
        pieces.push(libc::iovec { iov_base: (&raw mut beyond).cast(), iov_len: 1 });
        // SAFETY: the pieces are the mapped guest RAM of `self` and one byte on the stack; both live for the call.
        count(unsafe { libc::readv(fd.as_raw_fd(), pieces.as_ptr(), number(&pieces)?) })
    }

    /// Reads what a stream holds, as much of it as fits; returns how many bytes came, none when the stream has ended.
    ///
    /// # Errors
    /// What `readv(2)` says; `InvalidInput` when there are too many pieces.
    pub fn read_stream(&self, fd: BorrowedFd) -> io::Result<usize> {
        // SAFETY: the pieces are mapped guest RAM, which lives as long as `self`.
        count(unsafe { libc::readv(fd.as_raw_fd(), self.iovecs().as_ptr(), number(self.iovecs())?) })
    }

    /// Writes one record, for example a frame to a tap; returns how many bytes were taken.
    ///
    /// # Errors
    /// What `writev(2)` says; `InvalidInput` when there are too many pieces.
    pub fn write_record(&self, fd: BorrowedFd) -> io::Result<usize> {
        // SAFETY: the pieces are mapped guest RAM, which lives as long as `self`; the kernel only reads there.
        count(unsafe { libc::writev(fd.as_raw_fd(), self.iovecs().as_ptr(), number(self.iovecs())?) })
    }

    /// Sends `prefix` and then all bytes from `from` on to a stream socket, without waiting; returns
    /// how many bytes were taken, those of `prefix` included.
    ///
    /// # Errors
    /// What `sendmsg(2)` says, among it `WouldBlock` when nothing was taken.
    pub fn send(&self, socket: BorrowedFd, prefix: &[u8], mut from: usize) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(self.iovecs().len() + 1);
        pieces.push(libc::iovec { iov_base: prefix.as_ptr().cast_mut().cast(), iov_len: prefix.len() });
        for piece in self.iovecs() {
            let skipped = from.min(piece.iov_len);
            from -= skipped;
            if skipped < piece.iov_len {
                pieces.push(libc::iovec {
                    iov_base: piece.iov_base.wrapping_byte_add(skipped),
                    iov_len: piece.iov_len - skipped,
                });
            }
        }
        number(&pieces)?;
        // SAFETY: `msghdr` is plain data, for which all zeroes is a value: no address, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pieces are `prefix` and mapped guest RAM, which live for the call; the kernel only reads there.
        count(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
    }
}

fn number(pieces: &[libc::iovec]) -> io::Result<libc::c_int> {
    match pieces.len() {
        len @ ..=MAX_PIECES => Ok(len as libc::c_int),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
