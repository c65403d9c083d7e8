//! The user's terminal: raw while a guest has it, as it was before on every way out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Terminals that are raw now, with the settings to give back.
static RAW: Mutex<Vec<(libc::c_int, libc::termios)>> = Mutex::new(Vec::new());

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
    let fd = fd.as_raw_fd();
    // SAFETY: all zeroes is a valid value of this plain structure; the calls fill it or fail.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is ours.
    if unsafe { libc::tcgetattr(fd, &mut settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = settings;
    // SAFETY: `settings` is ours and was filled.
    unsafe { libc::cfmakeraw(&mut settings) };
    // Newlines of the monitor's own messages still start at the left.
    settings.c_oflag |= before.c_oflag & (libc::OPOST | libc::ONLCR);
    // SAFETY: as above.
    if unsafe { libc::tcsetattr(fd, libc::TCSANOW, &settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    RAW.lock().unwrap_or_else(PoisonError::into_inner).push((fd, before));
    Ok(())
}

/// Gives every raw terminal its settings back. Safe to call more than once.
pub fn restore() {
    for (fd, settings) in RAW.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // SAFETY: `settings` came from this terminal; a descriptor that is closed makes the call fail, no more.
        unsafe { libc::tcsetattr(fd, libc::TCSANOW, &settings) };
    }
}

/// Reads a line that is not shown: a password. `None` when the user has no mind to (`Ctrl-C`, `Ctrl-D`).
pub fn read_secret(terminal: &mut (impl io::Read + AsFd)) -> io::Result<Option<String>> {
    const CANCEL: u8 = 3;
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: all zeroes is a valid value of this plain structure; the call fills it or fails.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is ours.
    if unsafe { libc::tcgetattr(fd, &mut settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = settings;
    // Ctrl-C ends the line and not the program, which could not show again what is typed.
    settings.c_lflag &= !(libc::ECHO | libc::ISIG);
    settings.c_lflag |= libc::ECHONL;
    settings.c_cc[libc::VEOL] = CANCEL;
    // SAFETY: `settings` is ours and was filled.
    if unsafe { libc::tcsetattr(fd, libc::TCSAFLUSH, &settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut line = vec![0; 4096];
    let read = terminal.read(&mut line);
    // SAFETY: `before` came from this terminal.
    unsafe { libc::tcsetattr(fd, libc::TCSANOW, &before) };
    line.truncate(read?);
    if line.last().is_none_or(|&last| last == CANCEL) {
        return Ok(None);
    }
    let text = String::from_utf8(line).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).into()))
}

/// A new pseudo-terminal: its controlling side, and the path of the side for a user. The user's side starts raw.
pub fn open_pty() -> io::Result<(OwnedFd, String)> {
    // SAFETY: plain call; the result is checked.
    let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
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
    Ok((fd, String::from_utf8_lossy(&name[..end]).into_owned()))
}
