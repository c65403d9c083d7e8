//! The user's terminal: raw while a guest has it, as it was before on every way out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::signals;

/// A terminal that is raw, with the settings to give back. It stays in memory for good, so that a signal's handler finds it
/// whatever it interrupts; there are one or two of them.
struct Raw {
    fd: libc::c_int,
    before: libc::termios,
    next: *const Raw,
}

/// The one that was made raw last.
static RAW: AtomicPtr<Raw> = AtomicPtr::new(ptr::null_mut());

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: BorrowedFd) -> bool {
    std::io::IsTerminal::is_terminal(&fd)
}

/// Lines, and characters of a line, that the terminal shows, if it says so.
pub fn size(fd: BorrowedFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is ours, and the kernel writes no more than it has.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Makes the terminal raw: every key goes to the guest, nothing is echoed, output is not changed.
/// It stays so until [`restore`].
pub fn make_raw(fd: BorrowedFd) -> io::Result<()> {
    let before = settings(fd)?;
    let mut settings = before;
    // SAFETY: `settings` is ours and was filled.
    unsafe { libc::cfmakeraw(&mut settings) };
    // Newlines of the monitor's own messages still start at the left.
    settings.c_oflag |= before.c_oflag & (libc::OPOST | libc::ONLCR);
    signals::before_the_end(give_back);
    let raw = Box::leak(Box::new(Raw { fd: fd.as_raw_fd(), before, next: RAW.load(Ordering::Acquire) }));
    // Known before it is raw: a signal may come between.
    while let Err(first) = RAW.compare_exchange(raw.next.cast_mut(), raw, Ordering::AcqRel, Ordering::Acquire)
    {
        raw.next = first;
    }
    set(fd, libc::TCSANOW, &settings)
}

/// What is set now.
fn settings(fd: BorrowedFd) -> io::Result<libc::termios> {
    // SAFETY: all zeroes is a valid value of this plain structure; the call fills it or fails.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is ours.
    match unsafe { libc::tcgetattr(fd.as_raw_fd(), &mut settings) } {
        0 => Ok(settings),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(fd: BorrowedFd, when: libc::c_int, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` came from a terminal and lives for the call.
    match unsafe { libc::tcsetattr(fd.as_raw_fd(), when, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every raw terminal its settings back. Safe to call more than once.
pub fn restore() {
    give_back();
    RAW.store(ptr::null_mut(), Ordering::Release);
}

/// Gives the settings back, and does no more than a signal's handler may.
fn give_back() {
    let mut raw = RAW.load(Ordering::Acquire).cast_const();
    // SAFETY: each was leaked, and is not changed once it is in the list.
    while let Some(found) = unsafe { raw.as_ref() } {
        // SAFETY: the settings came from this terminal; a descriptor that is closed makes the call fail, no more.
        unsafe { libc::tcsetattr(found.fd, libc::TCSANOW, &found.before) };
        raw = found.next;
    }
}

/// Reads a line that is not shown: a password. `None` when the user has no mind to (`Ctrl-C`, `Ctrl-D`).
pub fn read_secret(terminal: &mut (impl io::Read + AsFd)) -> io::Result<Option<String>> {
    const CANCEL: u8 = 3;
    let before = settings(terminal.as_fd())?;
    let mut settings = before;
    // Ctrl-C ends the line and not the program, which could not show again what is typed.
    settings.c_lflag &= !(libc::ECHO | libc::ISIG);
    settings.c_lflag |= libc::ECHONL;
    settings.c_cc[libc::VEOL] = CANCEL;
    set(terminal.as_fd(), libc::TCSAFLUSH, &settings)?;
    let mut line = vec![0; 4096];
    let read = terminal.read(&mut line);
    let _ = set(terminal.as_fd(), libc::TCSANOW, &before);
    line.truncate(read?);
    if line.last().is_none_or(|&last| last == CANCEL) {
        return Ok(None);
    }
    let text = String::from_utf8(line).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).into()))
}

/// A new pseudo-terminal: the program's side, which never blocks, and the user's, which is raw, with its path.
pub fn open_pty() -> io::Result<(OwnedFd, OwnedFd, String)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: plain call; the result is checked.
    let fd = unsafe { libc::posix_openpt(flags | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut name = [0u8; 128];
    // SAFETY: the descriptor is a pty, and `name` has the length that is given.
    let failed = unsafe {
        libc::grantpt(fd.as_raw_fd()) != 0
            || libc::unlockpt(fd.as_raw_fd()) != 0
            || libc::ptsname_r(fd.as_raw_fd(), name.as_mut_ptr().cast(), name.len()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let path = String::from_utf8_lossy(&name[..end]).into_owned();
    let user = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    // Else what the guest says would be echoed, and come back to it as if somebody had typed it.
    let mut settings = settings(user.as_fd())?;
    // SAFETY: `settings` is ours and was filled.
    unsafe { libc::cfmakeraw(&mut settings) };
    set(user.as_fd(), libc::TCSANOW, &settings)?;
    Ok((fd, user.into(), path))
}
