//! Processes: forks, programs, signals, ends (`fork(2)`, `execve(2)`, `rt_sigaction(2)`, `wait4(2)`).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent::accounts::Account;

use crate::sys::{self, Errno, Fd, Poll, Result, call, nr, plain};

/// The end of a child.
pub const SIGCHLD: u32 = 17;
/// A write to nobody.
pub const SIGPIPE: u32 = 13;
/// The terminal is gone.
pub const SIGHUP: u32 = 1;
/// Ctrl-C.
pub const SIGINT: u32 = 2;
/// The end, please.
pub const SIGTERM: u32 = 15;
/// The end, at once.
pub const SIGKILL: u32 = 9;

/// What becomes of a signal.
#[derive(Clone, Copy)]
pub enum Disposition {
    /// What the kernel does by itself.
    Default = 0,
    /// Nothing.
    Ignore = 1,
}

/// Says what becomes of a signal.
pub fn set_signal(signal: u32, disposition: Disposition) {
    // `struct sigaction` of the kernel: handler, flags, restorer, mask.
    let action = [disposition as usize, 0, 0, 0];
    // SAFETY: the kernel reads four words; no handler of ours is named.
    let _ = unsafe { call(nr::RT_SIGACTION, [signal as usize, action.as_ptr() as usize, 0, 8, 0, 0]) };
}

/// A process that goes on from here beside this one.
pub enum Fork {
    /// This is the new one.
    Child,
    /// This is the old one, and that the ID of the new one.
    Parent(u32),
}

/// Makes a second process.
pub fn fork() -> Result<Fork> {
    Ok(match plain(nr::FORK, [0; 3])? {
        0 => Fork::Child,
        pid => Fork::Parent(pid as u32),
    })
}

/// Sends a signal to a process, or to all of its group.
pub fn kill(pid: u32, group: bool, signal: u32) {
    let target = if group { -(pid as isize) } else { pid as isize };
    let _ = plain(nr::KILL, [target as usize, signal as usize, 0]);
}

/// How a process ended.
#[derive(Clone, Copy)]
pub enum End {
    /// With a status.
    Status(u8),
    /// By a signal.
    Signal(u8),
}

/// Waits for the end of a child.
pub fn wait(pid: u32) -> Result<End> {
    wait_for(pid as usize, 0).map(|(_, end)| end)
}

/// A child that has ended, if any has. An error if there are no children.
pub fn reap() -> Result<Option<(u32, End)>> {
    const ANY: usize = usize::MAX;
    const DO_NOT_WAIT: usize = 1;
    wait_for(ANY, DO_NOT_WAIT).map(|(pid, end)| (pid > 0).then_some((pid, end)))
}

fn wait_for(which: usize, options: usize) -> Result<(u32, End)> {
    let mut status = 0_i32;
    let arguments = [which, &raw mut status as usize, options, 0, 0, 0];
    // SAFETY: the kernel writes one number.
    let pid = sys::retry(|| unsafe { call(nr::WAIT4, arguments) })?;
    let end = match status & 0x7f {
        0 => End::Status((status >> 8) as u8),
        signal => End::Signal(signal as u8),
    };
    Ok((pid as u32, end))
}

/// A descriptor that is readable when the process has ended.
pub fn watch(pid: u32) -> Result<Fd> {
    plain(nr::PIDFD_OPEN, [pid as usize, 0, 0]).map(|fd| Fd(fd as i32))
}

/// A program with all that it is started with.
pub struct Command {
    /// Name or path, and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where it runs; the root directory if it is empty.
    pub directory: String,
    /// Whom it runs as, unless it stays as this process is.
    pub account: Option<Account>,
}

/// Where programs are looked for if nobody says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Command {
    /// Becomes the program; returns only if that fails.
    pub fn execute(&self) -> Errno {
        self.try_execute().err().unwrap_or(Errno::NOENT)
    }

    fn try_execute(&self) -> Result {
        // Some directories only root gets to, some only their owner.
        let directory = if self.directory.is_empty() { "/" } else { &self.directory };
        let entered = sys::on_path(nr::CHDIR, directory);
        if let Some(account) = &self.account {
            let groups = &account.groups;
            // SAFETY: the kernel reads as many numbers as there are.
            unsafe { call(nr::SETGROUPS, [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0]) }?;
            plain(nr::SETGID, [account.gid as usize, 0, 0])?;
            plain(nr::SETUID, [account.uid as usize, 0, 0])?;
        }
        entered.or_else(|_| sys::on_path(nr::CHDIR, directory))?;
        let argv = texts(&self.argv)?;
        let env = texts(&self.env)?;
        let (argv, env) = (pointers(&argv), pointers(&env));
        let program = self.argv.first().ok_or(Errno::INVAL)?;
        if program.contains('/') {
            return try_one(program, &argv, &env);
        }
        let path = self.env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(PATH);
        let mut last = Errno::NOENT;
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            if let Err(error) = try_one(&format!("{directory}/{program}"), &argv, &env)
                && error != Errno::NOENT
                && error != Errno(20)
            {
                last = error;
            }
        }
        Err(last)
    }

    /// Runs the program to its end, at most so many milliseconds; its output goes where this process's goes.
    pub fn run(&self, milliseconds: u64) -> Result<End> {
        match fork()? {
            Fork::Child => {
                reset_signals();
                let _ = plain(nr::SETSID, [0; 3]);
                let _ = self.execute();
                sys::exit(127)
            }
            Fork::Parent(pid) => {
                let process = watch(pid)?;
                let limit = sys::now(sys::Clock::Monotonic) + milliseconds * 1_000_000;
                loop {
                    let left = limit.saturating_sub(sys::now(sys::Clock::Monotonic)) / 1_000_000;
                    match sys::poll(&mut [Poll::new(process.0, Poll::IN)], Some(left)) {
                        Ok(0) if left == 0 => {
                            kill(pid, true, SIGKILL);
                            return wait(pid);
                        }
                        Ok(0) | Err(Errno::INTR) => {}
                        _ => return wait(pid),
                    }
                }
            }
        }
    }
}

/// A program finds signals as it expects them.
pub fn reset_signals() {
    set_signal(SIGCHLD, Disposition::Default);
    set_signal(SIGPIPE, Disposition::Default);
    set_signal(SIGHUP, Disposition::Default);
}

fn texts(list: &[String]) -> Result<Vec<Vec<u8>>> {
    list.iter().map(|text| sys::c_text(text)).collect()
}

fn pointers(list: &[Vec<u8>]) -> Vec<*const u8> {
    list.iter().map(|text| text.as_ptr()).chain([core::ptr::null()]).collect()
}

fn try_one(path: &str, argv: &[*const u8], env: &[*const u8]) -> Result {
    let path = sys::c_text(path)?;
    // SAFETY: path, arguments and environment are texts with ends, and both lists end with a null pointer.
    unsafe {
        call(nr::EXECVE, [path.as_ptr() as usize, argv.as_ptr() as usize, env.as_ptr() as usize, 0, 0, 0])
            .map(drop)
    }
}
