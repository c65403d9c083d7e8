//! Guest memory lent to one I/O request: checked ranges that stay mapped as long as the request lives.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Error, Memory};
use crate::sys::file::Pieces;

/// Scattered pieces of guest RAM, in order, as one run of bytes.
///
/// Every piece was checked to lie in guest RAM when it was added, and the memory stays mapped
/// while this value lives, so it can be handed to the kernel and to other threads. The guest
/// may change the bytes at any time: nothing read from here stays true, copy before checking.
pub struct Buffers {
    iovecs: Vec<libc::iovec>,
    len: usize,
    memory: Arc<Memory>,
}

// SAFETY: the pointers lead into guest RAM, which `memory` keeps mapped and which is shared
// memory by nature: it is only ever accessed by raw copies and by the kernel.
unsafe impl Send for Buffers {}

// SAFETY: as above, and nobody holds references to guest bytes.
unsafe impl Pieces for Buffers {
    fn pieces(&self) -> &[libc::iovec] {
        &self.iovecs
    }
}

impl Buffers {
    /// An empty list over `memory`.
    pub fn new(memory: &Arc<Memory>) -> Self {
        Buffers { iovecs: Vec::new(), len: 0, memory: Arc::clone(memory) }
    }

    /// Appends `len` bytes of guest RAM at `address`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if any byte is outside RAM or the total passes 4 GiB.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> Result<(), Error> {
        let outside = || Error::OutOfRange { address: address.0, len };
        let total =
            self.len.checked_add(len).filter(|&total| total <= u32::MAX as usize).ok_or_else(outside)?;
        let before = self.iovecs.len();
        for slice in self.memory.get_slices(address, len) {
            match slice {
                Ok(slice) => self.iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                }),
                Err(_) => {
                    self.iovecs.truncate(before);
                    return Err(outside());
                }
            }
        }
        self.len = total;
        Ok(())
    }

    /// Appends all pieces of `other`, which is over the same memory.
    pub fn extend(&mut self, other: &Buffers) {
        assert!(Arc::ptr_eq(&self.memory, &other.memory), "pieces of one memory");
        self.iovecs.extend_from_slice(&other.iovecs);
        self.len += other.len;
    }

    /// Takes all pieces out; room for them stays allocated.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.len = 0;
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, for vectored system calls and io_uring. They are valid while `self` lives.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// The pieces as other crates of the same family take them.
    pub fn slices(&self) -> Vec<VolatileSlice<'_>> {
        self.iovecs
            .iter()
            // SAFETY: each piece is mapped as long as `self` lives, and guest RAM is only accessed by raw copies.
            .map(|piece| unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) })
            .collect()
    }

    /// Cuts off and returns all bytes from `at` on; `self` keeps the first `at` bytes.
    pub fn split_off(&mut self, at: usize) -> Buffers {
        let mut tail = Buffers::new(&self.memory);
        let mut start = 0;
        let mut keep = Vec::with_capacity(self.iovecs.len());
        for piece in self.iovecs.drain(..) {
            let head = at.saturating_sub(start).min(piece.iov_len);
            start += piece.iov_len;
            if head > 0 {
                keep.push(libc::iovec { iov_base: piece.iov_base, iov_len: head });
            }
            if head < piece.iov_len {
                tail.iovecs.push(libc::iovec {
                    iov_base: piece.iov_base.wrapping_byte_add(head),
                    iov_len: piece.iov_len - head,
                });
            }
        }
        tail.len = self.len.saturating_sub(at);
        self.len -= tail.len;
        self.iovecs = keep;
        tail
    }

    /// The `len` bytes from `offset` on (or as many as there are), as a second view of the same memory.
    pub fn part(&self, offset: usize, len: usize) -> Buffers {
        let mut part = Buffers::new(&self.memory);
        self.walk(offset, len, |base, _, len| {
            part.iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len });
            part.len += len;
        });
        part
    }

    /// Copies guest bytes from `offset` on into `to`; returns how many there were.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        self.walk(offset, to.len(), |guest, at, len| {
            // SAFETY: `guest` points to `len` bytes of mapped guest RAM, `to` has room from `at`
            // by the bound in `walk`, and host memory never overlaps guest RAM.
            unsafe { std::ptr::copy_nonoverlapping(guest, to[at..at + len].as_mut_ptr(), len) }
        })
    }

    /// Copies `from` into guest memory from `offset` on; returns how many bytes fitted.
    pub fn write_at(&self, offset: usize, from: &[u8]) -> usize {
        self.walk(offset, from.len(), |guest, at, len| {
            // SAFETY: as in `read_at`, in the other direction.
            unsafe { std::ptr::copy_nonoverlapping(from[at..at + len].as_ptr(), guest, len) }
        })
    }

    /// Writes zeroes over `len` bytes from `offset` on; returns how many there were.
    pub fn zero_at(&self, offset: usize, len: usize) -> usize {
        self.walk(offset, len, |guest, _, len| {
            // SAFETY: `guest` points to `len` bytes of mapped guest RAM.
            unsafe { std::ptr::write_bytes(guest, 0, len) }
        })
    }

    /// Walks the pieces that hold bytes `offset..offset + len`, calling `each` with the host
    /// pointer, the distance from `offset` and the length of the run.
    fn walk(&self, offset: usize, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in &self.iovecs {
            if done == len {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let run = (piece.iov_len - skip).min(len - done);
            each(piece.iov_base.wrapping_byte_add(skip).cast(), done, run);
            done += run;
            skip = 0;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pages, allocate};

    fn memory() -> Arc<Memory> {
        Arc::new(
            allocate(&[(GuestAddress(0), 0x4000), (GuestAddress(0x8000), 0x1000)], Pages::Transparent)
                .unwrap(),
        )
    }

    #[test]
    fn reads_back_what_was_written_across_pieces() {
        let mut buffers = Buffers::new(&memory());
        buffers.push(GuestAddress(0x10), 3).unwrap();
        buffers.push(GuestAddress(0x8ffe), 2).unwrap();
        assert_eq!(buffers.write_at(1, b"abcdef"), 4);
        let mut back = [0; 5];
        assert_eq!(buffers.read_at(0, &mut back), 5);
        assert_eq!(&back, b"\0abcd");
    }

    #[test]
    fn refuses_what_is_outside_ram() {
        let mut buffers = Buffers::new(&memory());
        for (address, len) in
            [(0x3fff, 2), (0x5000, 1), (0x8fff, 2), (u64::MAX, 2), (0, u32::MAX as usize + 1)]
        {
            assert!(buffers.push(GuestAddress(address), len).is_err(), "{address:#x}+{len}");
        }
        assert!(buffers.is_empty() && buffers.iovecs().is_empty());
    }

    #[test]
    fn splits_anywhere() {
        for at in 0..=6 {
            let mut head = Buffers::new(&memory());
            head.push(GuestAddress(0), 4).unwrap();
            head.push(GuestAddress(0x100), 2).unwrap();
            head.write_at(0, b"abcdef");
            let tail = head.split_off(at);
            let mut back = [0; 6];
            assert_eq!(head.read_at(0, &mut back), at);
            assert_eq!(tail.read_at(0, &mut back[at..]), 6 - at);
            assert_eq!(&back, b"abcdef");
        }
    }

    #[test]
    fn parts_are_views() {
        let mut whole = Buffers::new(&memory());
        whole.push(GuestAddress(0), 4).unwrap();
        whole.push(GuestAddress(0x100), 2).unwrap();
        whole.write_at(0, b"abcdef");
        for (offset, len, expected) in [(0, 6, "abcdef"), (3, 2, "de"), (4, 9, "ef"), (6, 1, ""), (2, 0, "")]
        {
            let part = whole.part(offset, len);
            let mut back = [0; 6];
            assert_eq!(part.read_at(0, &mut back), expected.len());
            assert_eq!((part.len(), &back[..expected.len()]), (expected.len(), expected.as_bytes()));
        }
        whole.part(3, 2).write_at(0, b"DE");
        let mut back = [0; 6];
        whole.read_at(0, &mut back);
        assert_eq!(&back, b"abcDEf");
    }
}
