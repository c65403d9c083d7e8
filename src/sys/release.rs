//! Descriptors that take the kernel long to release: its own threads do it, and nobody waits (io_uring_register(2)).
//!
//! ```text
//!   fd ──registered with──► ring ──closed──► a kernel thread ends the ring, and with it the last reference to the file
//!    └── closed at once: this is not the last reference
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::IoUring;

/// Lets the kernel release the file behind `fd` in the background: after this, closing the last descriptor of it, or
/// the end of the process, takes no time. Nothing changes but the time if the host has no io_uring.
///
/// # Errors
/// The host has no io_uring, or forbids it.
pub fn in_background(fd: BorrowedFd) -> io::Result<()> {
    let ring = IoUring::new(1)?;
    ring.submitter().register_files(&[fd.as_raw_fd()])
}
