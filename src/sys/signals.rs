//! Signals: as events, blocked in every thread and read from a descriptor (signalfd(2)); and what is done at those that end
//! the program (sigaction(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// The signals that ask for an end: all that somebody sends to a program to end it, or sends by mistake with that effect.
const TERMINATION: [libc::c_int; 8] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGPWR,
];

/// Further signals that end a program: by the kernel for what it did, or by itself.
const FATAL: [libc::c_int; 12] = [
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGSTKFLT,
];

/// Signals that whoever runs a program for a user gives on to it, and that its terminal has changed.
pub const PASSED_ON: &[libc::c_int] =
    &[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Receives what asks for an end (SIGTERM, SIGINT and their like) in place of its usual effect.
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

/// What is done before a signal ends the program.
static LAST: OnceLock<fn()> = OnceLock::new();

/// What the standard library does at a fault: it tells of stacks that are used up.
static FAULTS: [OnceLock<libc::sigaction>; 2] = [OnceLock::new(), OnceLock::new()];

fn fault(signal: libc::c_int) -> Option<&'static OnceLock<libc::sigaction>> {
    match signal {
        libc::SIGSEGV => Some(&FAULTS[0]),
        libc::SIGBUS => Some(&FAULTS[1]),
        _ => None,
    }
}

/// Has `last` called before any signal but SIGKILL ends the program; then the signal has its usual effect. Signals that are
/// ignored or received otherwise stay so. What a first call has said holds.
///
/// `last` may come in the middle of anything: it makes system calls that signal-safety(7) allows and does nothing else.
pub fn before_the_end(last: fn()) {
    if LAST.set(last).is_err() {
        return;
    }
    for signal in TERMINATION.into_iter().chain(FATAL) {
        // SAFETY: all zeroes is a valid value of this plain structure, without flags and with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let mut before = action;
        // SAFETY: `before` is ours; nothing is changed.
        let known = unsafe { libc::sigaction(signal, std::ptr::null(), &mut before) } == 0;
        if !known || before.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        if let Some(fault) = fault(signal) {
            let _ = fault.set(before);
        }
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = end;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `end` has the form that SA_SIGINFO asks for and calls nothing that is not safe in a handler.
        unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    }
}

/// The handler: the signal comes again when it returns, and then has its usual effect.
extern "C" fn end(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(last) = LAST.get() {
        last();
    }
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid structure.
    let by_the_kernel = unsafe { (*info).si_code } > 0;
    // SAFETY: system calls that are safe in a handler; the action that is set again was there before.
    unsafe {
        match fault(signal).and_then(OnceLock::get) {
            // The instruction is tried again.
            Some(before) if by_the_kernel => {
                libc::sigaction(signal, before, std::ptr::null_mut());
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}

/// A write beyond the limit of a file's size fails (EFBIG) and does not end the program (SIGXFSZ, `setrlimit(2)`). Programs that are
/// started from here are not touched: they ignore nothing that they did not ignore before.
pub fn survive_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: as in `before_the_end`; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = nothing;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGXFSZ, &action, std::ptr::null_mut());
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
