//! One rvmm process: how it is started, what it says, how it ends.
//!
//! ```text
//!   Machine ──start──► Running ──finish──► Ended
//!      └──────────────── run ───────────────┘
//! ```

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::stream::Stream;
use super::{PATIENCE, filter, host, world};

/// A machine to be started.
pub struct Machine {
    command: Command,
    home: Arc<TempDir>,
    words: Vec<String>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    limit: Duration,
}

impl Machine {
    /// rvmm without any option.
    pub fn rvmm() -> Self {
        Self::program(env!("CARGO_BIN_EXE_rvmm"))
    }

    /// Another program, or rvmm at another place.
    pub fn program(program: impl AsRef<OsStr>) -> Self {
        Self::from(Command::new(program))
    }

    /// A machine with this kernel and no network.
    pub fn new(kernel: impl AsRef<OsStr>) -> Self {
        Self::rvmm().option("--kernel", kernel).option("--net", "none").arg("--json")
    }

    /// A machine with this kernel and the network `net` in a [`world`] of its own; `prelude` runs there before it.
    pub fn in_world(kernel: impl AsRef<OsStr>, net: &str, prelude: &str) -> Self {
        let mut command = world::shell(&format!("{prelude} exec \"$@\""));
        command.arg("sh").arg(env!("CARGO_BIN_EXE_rvmm"));
        Self::from(command).option("--kernel", kernel).option("--net", net).arg("--json")
    }

    /// A whole command line of rvmm, as a person would write it.
    pub fn command_line(arguments: &[&str]) -> Self {
        arguments.iter().fold(Self::rvmm(), Self::arg)
    }

    fn from(command: Command) -> Self {
        let home = Arc::new(TempDir::new().expect("a scratch directory"));
        Machine { command, home, words: Vec::new(), stdin: None, stdout: None, limit: PATIENCE }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", count.to_string())
    }

    pub fn memory(self, size: &str) -> Self {
        self.option("--memory", size)
    }

    /// A disk, with its options: `disk(path, ",ro")`.
    pub fn disk(self, path: &Path, options: &str) -> Self {
        self.option("--disk", format!("{}{options}", path.display()))
    }

    /// Words for the kernel's command line.
    pub fn words(mut self, words: impl Into<String>) -> Self {
        self.words.push(words.into());
        self
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Where the guest's output goes, instead of to this test.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// The kernel refuses io_uring to it, as container engines have it.
    pub fn without_uring(mut self) -> Self {
        // SAFETY: the calls are safe between fork and exec.
        unsafe { self.command.pre_exec(filter::refuse_uring) };
        self
    }

    /// The kernel does not tell it which pages it has as ranges (`PAGEMAP_SCAN`), as an older one.
    pub fn without_scan(mut self) -> Self {
        // SAFETY: the calls are safe between fork and exec.
        unsafe { self.command.pre_exec(filter::refuse_scan) };
        self
    }

    /// Files that it writes may not be longer than so many bytes, until [`Running::lifts_file_size_limit`].
    pub fn file_size_limit(self, bytes: u64) -> Self {
        self.soft_limit(libc::RLIMIT_FSIZE, bytes)
    }

    /// A limit of its resources that it may raise (`setrlimit(2)`).
    pub fn soft_limit(mut self, resource: libc::__rlimit_resource_t, value: u64) -> Self {
        let set = move || {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: both calls read or write the one structure.
            let done = unsafe {
                libc::getrlimit(resource, &mut limit);
                limit.rlim_cur = value;
                libc::setrlimit(resource, &limit)
            };
            if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the calls are safe between fork and exec.
        unsafe { self.command.pre_exec(set) };
        self
    }

    /// How long it may run before it counts as hanging.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Uses the runtime directory of another machine, so that commands find both.
    pub fn beside(mut self, other: &Running) -> Self {
        self.home = Arc::clone(&other.home);
        self
    }

    pub fn run(self) -> Ended {
        self.start().finish()
    }

    pub fn start(mut self) -> Running {
        if !self.words.is_empty() {
            self.command.arg("--cmdline").arg(self.words.join(" "));
        }
        self.command
            .env("RVMM_RUNTIME_DIR", self.home.path().join("run"))
            .env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
            .stdin(self.stdin.unwrap_or_else(Stdio::null))
            .stdout(self.stdout.unwrap_or_else(Stdio::piped))
            .stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("an rvmm that starts");
        let out = child.stdout.take().map_or_else(|| Stream::new(std::io::empty()), Stream::new);
        let err = Stream::new(child.stderr.take().expect("a pipe"));
        let stdin = child.stdin.take();
        Running { child, stdin, out, err, home: self.home, deadline: Instant::now() + self.limit }
    }
}

/// An rvmm that runs. It is killed when this value is dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    out: Stream,
    err: Stream,
    home: Arc<TempDir>,
    deadline: Instant,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where the machine is entered under its name.
    pub fn runtime_directory(&self) -> PathBuf {
        self.home.path().join("run")
    }

    /// Waits until the guest has said `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        self.says_times(text, 1)
    }

    /// Waits until the guest has said `text` so many times.
    #[track_caller]
    pub fn says_times(&self, text: &str, times: usize) -> &Self {
        let said = self.out.wait(self.deadline, |all| all.matches(text).count() >= times);
        assert!(
            said,
            "the guest did not say {text:?} {times} times:\n{}\n{}",
            self.out.text(),
            self.err.text()
        );
        self
    }

    /// Waits until rvmm itself has said `text` on standard error; gives all that it has said there.
    #[track_caller]
    pub fn complains(&self, text: &str) -> String {
        self.complains_times(text, 1)
    }

    /// Waits until rvmm itself has said `text` so many times.
    #[track_caller]
    pub fn complains_times(&self, text: &str, times: usize) -> String {
        let said = self.err.wait(self.deadline, |all| all.matches(text).count() >= times);
        assert!(said, "rvmm did not say {text:?} {times} times:\n{}\n{}", self.out.text(), self.err.text());
        self.err.text()
    }

    /// What the guest has said so far.
    pub fn said(&self) -> String {
        self.out.text()
    }

    /// Types on a standard input that is a pipe.
    pub fn types(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("a machine with a pipe for its standard input");
        stdin.write_all(text.as_bytes()).expect("a machine that reads");
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain call; the child has not been waited for, so the number is its own.
        let result = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(result, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Whether it has not yet taken notice of a signal.
    pub fn signal_is_pending(&self, signal: libc::c_int) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let masks = ["SigPnd:", "ShdPnd:"].map(|key| {
            let mask = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
            u64::from_str_radix(mask.trim(), 16).expect("a mask of signals")
        });
        masks.iter().any(|mask| mask & 1 << (signal - 1) != 0)
    }

    /// See [`Machine::file_size_limit`].
    pub fn lifts_file_size_limit(&self) {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a plain call that reads our `limit`; the child has not been waited for, so the number is its own.
        let result = unsafe {
            libc::prlimit(self.pid() as libc::pid_t, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "prlimit: {}", std::io::Error::last_os_error());
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// A command of rvmm for machines in the same runtime directory: its status, and what it printed.
    pub fn command(&self, arguments: &[&str]) -> Ended {
        Machine::command_line(arguments).beside(self).run()
    }

    /// Ends it as a power failure would.
    pub fn kill(self) -> Ended {
        self.signal(libc::SIGKILL);
        self.finish()
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                break status;
            }
            if Instant::now() > self.deadline {
                self.signal(libc::SIGKILL);
                panic!("it hangs:\n{}\n{}", self.out.text(), self.err.text());
            }
            thread::sleep(Duration::from_millis(1));
        };
        let status = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        Ended { status, out: self.out.finish(), err: self.err.finish() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An rvmm that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; the negative number of the signal that ended it.
    pub status: i32,
    /// What the guest, or a command, said.
    pub out: String,
    /// What rvmm said on standard error.
    pub err: String,
}

impl Ended {
    /// It ended with this status, and `--json` named this cause.
    #[track_caller]
    pub fn ended(&self, status: i32, cause: &str) -> &Self {
        assert_eq!((self.status, self.cause().as_str()), (status, cause), "status and cause of\n{self}");
        self
    }

    #[track_caller]
    pub fn powered_off(&self) -> &Self {
        self.ended(0, "power-off")
    }

    #[track_caller]
    pub fn said(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "{text:?} is not in\n{self}");
        self
    }

    #[track_caller]
    pub fn did_not_say(&self, text: &str) -> &Self {
        assert!(!self.out.contains(text), "{text:?} is in\n{self}");
        self
    }

    /// What follows `key` on a line of its own.
    #[track_caller]
    pub fn value(&self, key: &str) -> &str {
        let value = self.out.lines().find_map(|line| line.strip_prefix(key));
        value.unwrap_or_else(|| panic!("no line begins with {key:?}:\n{self}")).trim()
    }

    /// The report of `--json`, the last line of standard error.
    pub fn report(&self) -> serde_json::Value {
        let last = self.err.lines().rev().find(|line| line.starts_with('{'));
        last.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }

    /// How the machine ended.
    pub fn cause(&self) -> String {
        self.report()["cause"].as_str().unwrap_or("nothing").into()
    }

    /// What is known beyond the cause.
    pub fn detail(&self) -> String {
        self.report()["detail"].as_str().unwrap_or_default().into()
    }

    /// Nothing was started: one line says why, and it has all of `words`.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) -> &Self {
        self.failed(125, words)
    }

    /// It failed with this status: one line says why, and it has all of `words`.
    #[track_caller]
    pub fn failed(&self, status: i32, words: &[&str]) -> &Self {
        let one_line = self.err.ends_with('\n') && self.err.lines().count() == 1;
        assert!(self.status == status && one_line && self.out.is_empty(), "a refusal in one line:\n{self}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "status {}\nstdout: {}\nstderr: {}", self.status, self.out, self.err)
    }
}

/// Kills the children of a machine that a failed test leaves behind.
pub fn all_gone(processes: &[u32]) -> bool {
    super::eventually(|| !processes.iter().any(|&pid| host::runs(pid)))
}
