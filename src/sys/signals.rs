//! Signals as events: blocked in every thread and read from a descriptor (signalfd(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The signals that ask for an end.
const TERMINATION: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals that whoever runs a program for a user gives on to it, and that its terminal has changed.
pub const PASSED_ON: &[libc::c_int] =
    &[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Receives SIGTERM, SIGINT and SIGHUP in place of their usual effect.
pub struct Termination(OwnedFd);

impl Termination {
    /// Blocks the signals in this thread and in those it starts later. Call it before any thread is started.
    pub fn new() -> io::Result<Self> {
        receive(&TERMINATION, libc::SFD_NONBLOCK).map(Termination)
    }

    /// Takes one signal that has arrived.
    pub fn take(&self) -> Option<i32> {
        take(&self.0).ok()
    }
}

/// Receives signals in place of their usual effect, one after the other.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread and in those it starts later. Call it before any thread is started.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(signals: &[libc::c_int]) -> io::Result<Self> {
        receive(signals, 0).map(Signals)
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// When the host refuses, which it does not.
    pub fn wait(&self) -> io::Result<libc::c_int> {
        loop {
            match take(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// Blocks signals and gives the descriptor that tells them.
fn receive(signals: &[libc::c_int], flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a zeroed set is a valid argument to sigemptyset, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours, the signal numbers are valid, and no old mask is asked for.
    let fd = unsafe {
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &set, flags | libc::SFD_CLOEXEC)
    };
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a fresh descriptor that nobody else owns.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Reads one signal.
fn take(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: `info` has room for the `size` bytes that may be read.
    let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) };
    match read == size as isize {
        true => Ok(info.ssi_signo as libc::c_int),
        false => Err(io::Error::last_os_error()),
    }
}

impl AsRawFd for Termination {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
