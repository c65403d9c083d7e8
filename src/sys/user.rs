//! Who this process is, and the end of another one (geteuid(2), pidfd_open(2), pidfd_send_signal(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The user whose rights this process has.
pub fn effective() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The name of group `id` in /etc/group (group(5)), if it has one there.
pub fn group(id: u32) -> Option<String> {
    named("/etc/group", id)
}

/// The name of user `id` in /etc/passwd (passwd(5)), if they have one there.
pub fn name(id: u32) -> Option<String> {
    named("/etc/passwd", id)
}

/// The name of the line that has `id` as its third word.
fn named(path: &str, id: u32) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split(':');
        let name = words.next()?;
        (words.nth(1)?.parse() == Ok(id)).then(|| name.into())
    })
}

/// A process, held so that its number cannot come to mean another one.
pub struct Process(OwnedFd);

impl Process {
    /// The process that has number `pid` now.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: the call takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        match fd {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a fresh descriptor that nobody else owns.
            fd => Ok(Process(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        }
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// When it has ended, or belongs to somebody else.
    pub fn kill(&self) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open; without information there is nothing that the kernel reads.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, no_info, 0)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn groups_and_users_have_names() {
        for named in [group, name] {
            assert_eq!(named(0).as_deref(), Some("root"));
            assert_eq!(named(u32::MAX), None);
        }
    }

    #[test]
    fn ends_a_process() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        process.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(process.kill().is_err());
    }
}
