//! Signals as events: blocked in every thread and read from a descriptor (signalfd(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The signals that ask for an end.
const TERMINATION: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Receives SIGTERM, SIGINT and SIGHUP in place of their usual effect.
pub struct Termination(OwnedFd);

impl Termination {
    /// Blocks the signals in this thread and in those it starts later. Call it before any thread is started.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a zeroed set is a valid argument to sigemptyset, which initialises it.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is ours, the signal numbers are valid, and no old mask is asked for.
        let fd = unsafe {
            libc::sigemptyset(&mut set);
            for signal in TERMINATION {
                libc::sigaddset(&mut set, signal);
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a fresh descriptor that nobody else owns.
            fd => Ok(Termination(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    /// Takes one signal that has arrived.
    pub fn take(&self) -> Option<i32> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: `info` has room for the `size` bytes that may be read.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        (read == size as isize).then_some(info.ssi_signo as i32)
    }
}

impl AsRawFd for Termination {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
