//! Asynchronous file I/O with io_uring (io_uring(7)), safe for its callers: the ring owns what the kernel uses until the kernel is done.
//!
//! ```text
//!  push ──► submission queue ──reap──► kernel ──► completion queue ──reap──► Completed
//!             (a batch)                   └─ eventfd, if it did not finish inside `reap`
//! ```
//!
//! Memory is never registered with the ring: registered memory is pinned, and a fork would have to copy it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::file::{Hole, Pieces, window};
use crate::sys::slab::Slab;

/// Submissions in one batch; more are handed over in several batches.
const ENTRIES: u32 = 128;

/// What to do with the file.
#[derive(Debug)]
pub enum Operation<P> {
    /// Read at `offset + skip` into `pieces` without its first `skip` bytes.
    Read {
        /// Where to.
        pieces: P,
        /// Bytes that are done already.
        skip: usize,
        /// Where the first piece belongs in the file.
        offset: u64,
    },
    /// Write `pieces` without its first `skip` bytes at `offset + skip`.
    Write {
        /// Where from.
        pieces: P,
        /// Bytes that are done already.
        skip: usize,
        /// Where the first piece belongs in the file.
        offset: u64,
    },
    /// Make everything that was completed before durable (fdatasync).
    Sync,
    /// Make a hole.
    Hole {
        /// Of which kind.
        hole: Hole,
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// An operation that the kernel is done with.
#[derive(Debug)]
pub struct Completed<P, C> {
    /// What was asked.
    pub operation: Operation<P>,
    /// What the caller keeps with it.
    pub context: C,
    /// Bytes read or written, which may be fewer than asked.
    pub result: io::Result<usize>,
}

/// What the kernel reads or writes while an operation is under way.
struct Slot<P, C> {
    operation: Operation<P>,
    /// The pieces as the kernel was told them, if they differ from those of the operation.
    _window: Option<Vec<libc::iovec>>,
    context: C,
}

// SAFETY: the pointers in `_window` lead to the memory of the pieces in `operation`, which are Send themselves.
unsafe impl<P: Send, C: Send> Send for Slot<P, C> {}

/// An io_uring for one file.
pub struct Ring<P: Pieces, C> {
    uring: IoUring,
    event: Arc<EventFd>,
    file: Arc<File>,
    slots: Slab<Slot<P, C>>,
    /// Operations that were pushed and not handed to the kernel.
    queued: usize,
    /// Operations that the kernel has.
    under_way: usize,
    completed: Vec<Completed<P, C>>,
}

impl<P: Pieces, C> Ring<P, C> {
    /// A ring for `file` that makes `event` readable when an operation has completed outside of
    /// [`reap`](Self::reap). It takes some tens of microseconds and of KiB of the kernel's.
    ///
    /// # Errors
    /// The host has no io_uring, forbids it, or its io_uring lacks an operation.
    pub fn new(file: Arc<File>, event: Arc<EventFd>) -> io::Result<Self> {
        let uring = IoUring::builder().dontfork().setup_clamp().build(ENTRIES)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed =
            [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        // Without NODROP a completion could get lost.
        let complete = needed.iter().all(|&code| probe.is_supported(code));
        if !complete || !uring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Ring {
            uring,
            event,
            file,
            slots: Slab::default(),
            queued: 0,
            under_way: 0,
            completed: Vec::new(),
        })
    }

    /// Whether nothing is queued, under way or waiting to be reaped.
    pub fn is_idle(&self) -> bool {
        self.queued + self.under_way == 0 && self.completed.is_empty()
    }

    /// Queues an operation; the next [`reap`](Self::reap) hands it to the kernel.
    pub fn push(&mut self, operation: Operation<P>, context: C) {
        let (entry, window) = entry(&self.file, &operation);
        let entry = entry.user_data(self.slots.insert(Slot { operation, _window: window, context }) as u64);
        // SAFETY: what the entry points to is owned by the slot, in heap memory that does not move, until the
        // completion arrives; `drop` waits for it. The file is open as long as the ring lives.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.hand_over(0);
            // A kernel whose completion queue is full takes nothing more.
            self.take();
        }
        self.queued += 1;
    }

    /// Hands what was pushed to the kernel and appends what is complete.
    pub fn reap(&mut self, completed: &mut Vec<Completed<P, C>>) {
        // A fresh batch often completes while it is handed over: no signal for that.
        let fresh = self.under_way == 0 && self.queued > 0;
        if !fresh {
            let _ = self.event.read();
        }
        if self.queued > 0 {
            self.uring.completion().disable_eventfd();
            self.hand_over(0);
            self.uring.completion().enable_eventfd();
            // What completed before the kernel saw the change is in the queue now; what comes later signals.
            fence(Ordering::SeqCst);
        }
        self.take();
        completed.append(&mut self.completed);
    }

    /// Like [`reap`](Self::reap), but waits for at least one completion if anything is under way.
    pub fn wait(&mut self, completed: &mut Vec<Completed<P, C>>) {
        while self.completed.is_empty() && self.queued + self.under_way > 0 {
            self.hand_over(1);
            self.take();
        }
        completed.append(&mut self.completed);
    }

    /// Gives the queue to the kernel, and waits until at least `wanted` operations are complete.
    fn hand_over(&mut self, wanted: usize) {
        match self.uring.submit_and_wait(wanted) {
            Ok(count) => {
                self.queued -= count;
                self.under_way += count;
            }
            // Interrupted, or the kernel is short of memory: whoever waits comes again, and so does the worker.
            Err(_) => {
                let _ = self.event.write(1);
            }
        }
    }

    fn take(&mut self) {
        for completion in self.uring.completion() {
            self.under_way -= 1;
            let index = completion.user_data() as usize;
            let Some(Slot { operation, context, .. }) = self.slots.remove(index) else {
                continue;
            };
            let result = match completion.result() {
                n if n >= 0 => Ok(n as usize),
                code => Err(io::Error::from_raw_os_error(-code)),
            };
            self.completed.push(Completed { operation, context, result });
        }
    }
}

impl<P: Pieces, C> Drop for Ring<P, C> {
    fn drop(&mut self) {
        while !self.is_idle() {
            self.wait(&mut Vec::new());
        }
    }
}

/// The submission for an operation, and the pieces that it points to if they are not the operation's own.
fn entry<P: Pieces>(file: &File, operation: &Operation<P>) -> (squeue::Entry, Option<Vec<libc::iovec>>) {
    let fd = types::Fd(file.as_raw_fd());
    match operation {
        Operation::Read { pieces, skip, offset } => {
            let window = window(pieces.pieces(), *skip);
            let entry = opcode::Readv::new(fd, window.as_ptr(), window.len() as u32);
            (entry.offset(offset + *skip as u64).build(), owned(window))
        }
        Operation::Write { pieces, skip, offset } => {
            let window = window(pieces.pieces(), *skip);
            let entry = opcode::Writev::new(fd, window.as_ptr(), window.len() as u32);
            (entry.offset(offset + *skip as u64).build(), owned(window))
        }
        Operation::Sync => (opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), None),
        Operation::Hole { hole, offset, len } => {
            (opcode::Fallocate::new(fd, *len).offset(*offset).mode(hole.mode()).build(), None)
        }
    }
}

fn owned(window: std::borrow::Cow<'_, [libc::iovec]>) -> Option<Vec<libc::iovec>> {
    match window {
        std::borrow::Cow::Borrowed(_) => None,
        std::borrow::Cow::Owned(window) => Some(window),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// One piece of heap memory.
    struct Bytes {
        _bytes: Vec<u8>,
        piece: [libc::iovec; 1],
    }

    // SAFETY: the piece is the heap memory of the vector, which is not touched while it is lent.
    unsafe impl Pieces for Bytes {
        fn pieces(&self) -> &[libc::iovec] {
            &self.piece
        }
    }

    fn bytes(content: &[u8]) -> Bytes {
        let mut bytes = content.to_vec();
        let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        Bytes { _bytes: bytes, piece: [piece] }
    }

    fn ring() -> Option<(Ring<Bytes, usize>, Arc<File>)> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let event = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        match Ring::new(file.clone(), Arc::new(event)) {
            Ok(ring) => Some((ring, file)),
            Err(error) => {
                crate::testing::skip(format!("no io_uring here: {error}"));
                None
            }
        }
    }

    #[test]
    fn moves_more_than_a_batch() {
        let Some((mut ring, file)) = ring() else { return };
        let count = 3 * ENTRIES as usize;
        for i in 0..count {
            ring.push(Operation::Write { pieces: bytes(&[i as u8; 10]), skip: 2, offset: 10 * i as u64 }, i);
        }
        let mut seen = vec![false; count];
        while !ring.is_idle() {
            let mut completed = Vec::new();
            ring.wait(&mut completed);
            for done in completed {
                assert_eq!(done.result.unwrap(), 8);
                assert!(!std::mem::replace(&mut seen[done.context], true), "twice");
            }
        }
        assert!(seen.iter().all(|&seen| seen) && ring.is_idle());
        let mut back = [0; 20];
        file.read_exact_at(&mut back, 10).unwrap();
        assert_eq!(back, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn signals_what_it_did_not_finish_at_once() {
        let Some((mut ring, file)) = ring() else { return };
        file.set_len(1 << 20).unwrap();
        for i in 0..200 {
            ring.push(Operation::Hole { hole: Hole::Punch, offset: i * 4096, len: 4096 }, 0);
            ring.push(Operation::Sync, 1);
        }
        let mut left = 400;
        while left > 0 {
            let mut completed = Vec::new();
            ring.reap(&mut completed);
            left -= completed.len();
            completed.into_iter().for_each(|done| assert!(done.result.is_ok()));
            if left > 0 {
                assert!(signalled(&ring), "{left} left and no signal");
            }
        }
    }

    fn signalled(ring: &Ring<Bytes, usize>) -> bool {
        let mut polled = libc::pollfd { fd: ring.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd. The ring's work interrupts the wait.
        while unsafe { libc::poll(&mut polled, 1, 5000) } < 0 {}
        polled.revents == libc::POLLIN
    }

    #[test]
    fn waits_when_dropped() {
        let Some((mut ring, file)) = ring() else { return };
        for i in 0..50 {
            ring.push(Operation::Write { pieces: bytes(&[1; 100_000]), skip: 0, offset: i * 100_000 }, 0);
        }
        ring.reap(&mut Vec::new());
        drop(ring);
        assert_eq!(file.metadata().unwrap().len(), 50 * 100_000);
    }
}
