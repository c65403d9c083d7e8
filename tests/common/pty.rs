//! A terminal with a test at the keyboard.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use super::PATIENCE;

/// A pseudo-terminal: `user` is the test's side, `program` what the program sees.
pub struct Pty {
    user: File,
    program: OwnedFd,
    seen: Vec<u8>,
}

/// What the program has made of the terminal.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    input: libc::tcflag_t,
    output: libc::tcflag_t,
    local: libc::tcflag_t,
}

impl Pty {
    pub fn new() -> Self {
        let (mut user, mut program) = (-1, -1);
        // SAFETY: the two descriptors are ours; no name, settings or size is asked for.
        let result = unsafe {
            libc::openpty(
                &mut user,
                &mut program,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: fresh descriptors that nobody else owns.
        unsafe {
            Pty { user: File::from_raw_fd(user), program: OwnedFd::from_raw_fd(program), seen: Vec::new() }
        }
    }

    /// The program's side, for its standard input.
    pub fn program(&self) -> OwnedFd {
        self.program.try_clone().expect("a descriptor")
    }

    pub fn settings(&self) -> Settings {
        // SAFETY: all zeroes is a valid value; the call fills it.
        let mut found: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the settings are ours.
        let result = unsafe { libc::tcgetattr(self.program.as_raw_fd(), &mut found) };
        assert_eq!(result, 0, "tcgetattr: {}", io::Error::last_os_error());
        Settings { input: found.c_iflag, output: found.c_oflag, local: found.c_lflag }
    }

    pub fn types(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let start = Instant::now();
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            assert!(start.elapsed() < PATIENCE, "the screen does not show {text:?}");
            self.read();
        }
    }

    /// Reads what is there, waiting a moment if nothing is.
    fn read(&mut self) {
        let mut watched = libc::pollfd { fd: self.user.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which is ours.
        if unsafe { libc::poll(&mut watched, 1, 100) } > 0 {
            let mut piece = [0; 4096];
            let count = self.user.read(&mut piece).unwrap_or(0);
            self.seen.extend(&piece[..count]);
        }
    }
}
