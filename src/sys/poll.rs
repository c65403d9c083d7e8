//! Waiting for one descriptor (poll(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Whether there is something to read; false also when a signal or the end of `patience` comes first.
pub fn readable(fd: BorrowedFd, patience: Duration) -> io::Result<bool> {
    poll(fd, libc::POLLIN, patience)
}

/// Whether there is room to write; false also when a signal or the end of `patience` comes first.
pub fn writable(fd: BorrowedFd, patience: Duration) -> io::Result<bool> {
    poll(fd, libc::POLLOUT, patience)
}

/// An error that waits on the descriptor counts as well: the call that is to come tells it.
fn poll(fd: BorrowedFd, events: libc::c_short, patience: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let patience = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one structure, which lives for the call.
    match unsafe { libc::poll(&mut poll, 1, patience) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        found => Ok(found > 0),
    }
}
