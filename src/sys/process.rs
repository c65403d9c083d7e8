//! This process and its helpers, which are started without copying it (`posix_spawn(3)`): it may hold the memory of a
//! machine.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::io::{self, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::ptr;
use std::time::{Duration, Instant};

/// The number under which a helper finds the descriptor that it was given.
pub const GIVEN_FD: c_int = 3;

/// A process that was started here and has not been waited for.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// Waits for its end and forgets it.
    pub fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: the kernel writes one `int`, which lives for the call.
            if unsafe { libc::waitpid(self.pid, &mut status, 0) } == self.pid {
                return Ok(ExitStatus::from_raw(status));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Which side of a fork this is.
pub enum Fork {
    /// The process that was there; the number is the new one's.
    Parent(u32),
    /// The new process.
    Child,
}

/// Makes a second process like this one (`fork(2)`).
///
/// # Errors
/// This process has more than one thread, so a copy could find locks that nobody ever opens; or the host refuses.
pub fn fork() -> io::Result<Fork> {
    // A thread that has been joined may take a moment to be gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir("/proc/self/task")?.count() != 1 {
        if Instant::now() > deadline {
            return Err(io::Error::other("a process with several threads cannot be copied"));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    // SAFETY: no other thread exists, so the child finds all in a state between two statements of this thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid.unsigned_abs())),
    }
}

/// Descriptors that the table has room for from the start.
const DESCRIPTORS: c_int = 256;

/// Readies this process, which has one thread, for a life with a few: its table of descriptors is as long as it will
/// mostly be. To make it longer later, the kernel waits until no thread looks at the old one, for milliseconds. It may have as many
/// as the host allows (`ulimit -Hn`): the limit below that is for programs that use select(2).
pub fn expect_threads() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the one structure is read and written; for the rest numbers only, and the new descriptor is ours to close.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
        let last = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, DESCRIPTORS - 1);
        if last >= 0 {
            libc::close(last);
        }
    }
}

/// Lets go of the terminal: a session of its own, nothing on standard input, output and error.
pub fn detach() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: system calls without pointers, on descriptors that are open.
    unsafe {
        libc::setsid();
        for standard in 0..=2 {
            if libc::dup2(null.as_raw_fd(), standard) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Finds `program` where `execvp(3)` would.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Starts `program` with `args`, an empty environment, nothing on its standard input and output, and `given` as
/// descriptor [`GIVEN_FD`]. Returns it with what it writes to its standard error.
///
/// It is in a process group of its own, so that keys pressed on this process's terminal do not reach it.
pub fn spawn(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    given: BorrowedFd,
) -> io::Result<(Child, PipeReader)> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput);
    let program = text(program.as_os_str())?;
    let args = args.iter().map(|arg| text(arg.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut argv: Vec<*mut c_char> = vec![program.as_ptr().cast_mut()];
    argv.extend(args.iter().map(|arg| arg.as_ptr().cast_mut()));
    argv.push(ptr::null_mut());
    let env: [*mut c_char; 1] = [ptr::null_mut()];
    let (reader, writer) = io::pipe()?;
    let mut plan = Plan::new()?;
    plan.open(0, c"/dev/null", libc::O_RDONLY)?;
    plan.open(1, c"/dev/null", libc::O_WRONLY)?;
    // Standard error first: its source may have the very number that `given` gets.
    plan.duplicate(writer.as_raw_fd(), 2)?;
    plan.duplicate(given.as_raw_fd(), GIVEN_FD)?;
    let mut pid = 0;
    // SAFETY: every pointer leads to a live object of the right type: `program` and `args` end in a zero byte and
    // outlive the call, `argv` and `env` end in a null pointer, and `plan` was initialised by its constructor.
    check(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &plan.actions,
            &plan.attributes,
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok((Child { pid }, reader))
}

/// What is done in the new process before the program starts.
struct Plan {
    actions: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl Plan {
    /// No descriptors yet; no signal blocked or ignored, and a process group of its own.
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: each call initialises the object that it gets, and the object is used only when it succeeded. In
        // glibc and musl they are plain data that may be moved afterwards.
        let mut plan = unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Plan { actions: actions.assume_init(), attributes: attributes.assume_init() }
        };
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
        // SAFETY: the first two calls initialise the signal sets that the next two read; the
        // attributes were initialised above.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&mut plan.attributes, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(&mut plan.attributes, all.as_ptr()))?;
            check(libc::posix_spawnattr_setpgroup(&mut plan.attributes, 0))?;
            check(libc::posix_spawnattr_setflags(&mut plan.attributes, flags as libc::c_short))?;
        }
        Ok(plan)
    }

    /// Opens the file at `path` as descriptor `number`.
    fn open(&mut self, number: c_int, path: &'static CStr, flags: c_int) -> io::Result<()> {
        // SAFETY: the actions are initialised, and `path` lives forever and ends in a zero byte.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut self.actions, number, path.as_ptr(), flags, 0)
        })
    }

    /// Makes descriptor `from` of this process the descriptor `number`, which stays open in the program.
    fn duplicate(&mut self, from: c_int, number: c_int) -> io::Result<()> {
        // SAFETY: the actions are initialised; descriptors are plain numbers.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.actions, from, number) })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: both objects were initialised by the constructor and are not used afterwards.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&mut self.actions);
            libc::posix_spawnattr_destroy(&mut self.attributes);
        }
    }
}

/// These calls return their error instead of setting `errno`.
fn check(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;

    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn gives_one_descriptor_and_reads_standard_error() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"hello").unwrap();
        drop(writer);
        let shell = find("sh").unwrap();
        let script = "cat <&3 >&2; ls -l /proc/self/fd | wc -l >&2; env >&2; exit 7";
        let (child, mut stderr) = spawn(&shell, &["-c", script], reader.as_fd()).unwrap();
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert!(said.starts_with("hello"), "{said}");
        assert!(!said.contains("HOME="), "{said}");
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn says_what_is_missing() {
        let (reader, _writer) = io::pipe().unwrap();
        let error = spawn(Path::new("/nowhere/at/all"), &[""; 0], reader.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(find("no-such-program-at-all"), None);
    }
}
