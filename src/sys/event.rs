//! Events between threads, and to and from KVM (eventfd(2)).

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A new event that has not happened. Nobody waits at it, and programs that this one starts do not get it: they could raise
/// interrupts of the guest.
pub fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}
