//! The runtime directory: which machines of a user run, and where they listen.
//!
//! ```text
//!   DIRECTORY/           0700, of this user
//!   └─ NAME/             one machine
//!      ├─ lock           locked (flock(2)) as long as the machine lives; holds its process ID
//!      ├─ api.sock
//!      └─ vsock.sock, console.sock, console.log
//!
//!   claim:   mkdir NAME ─► open lock ─► flock ─► is it still the file at this path? ─► ours
//!                ▲                        │ held          │ no: somebody removed it meanwhile
//!                └────────────────────────┴───────────────┘ again; held for long: the name is taken
//!   remove:  (with the lock) everything in it ─► lock ─► NAME
//! ```
//!
//! An entry whose lock is free is stale: its process was killed. Whoever finds it removes it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::name::Name;
use crate::sys::file::is_at;
use crate::sys::{socket, user};

/// Names of files in a machine's directory.
const LOCK: &str = "lock";
const SOCKET: &str = "api.sock";

/// How often a lock is asked for while its machine's process is there before the name counts as taken, how often in all, and
/// the time between. Whoever only looks whether a machine lives holds a free lock for a moment, too.
const ATTEMPTS: u32 = 20;
const MOST_ATTEMPTS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(2);

/// Why an entry could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else could put entries there.
    #[error("The runtime directory {path} is not safe: {reason}")]
    Unsafe {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is taken.
    #[error("A machine with the name `{name}` runs already{}: choose another name or stop it", process(.pid))]
    Taken {
        /// The name.
        name: String,
        /// Process of the machine, if it is known.
        pid: Option<u32>,
    },
    /// The host refused.
    #[error("Cannot {doing} {path}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
}

fn process(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn host(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Host { doing, path, source }
}

/// A runtime directory, which need not exist yet.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The one at `path`.
    pub fn new(path: PathBuf) -> Self {
        Directory { path }
    }

    /// Takes `name` for a machine of this process.
    ///
    /// # Errors
    /// [`Error::Taken`], or when the directory cannot be used.
    pub fn claim(&self, name: &Name) -> Result<Entry, Error> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        // Only the last part: a mistyped path is an error and not a new tree.
        match builder.create(&self.path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(host("make the runtime directory", &self.path)(error));
            }
            _ => self.check()?,
        }
        let path = self.path.join(name.as_str());
        let (mut pid, mut seen_alive) = (None, 0);
        for attempt in 0..MOST_ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            match builder.create(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(host("make the directory", &path)(error));
                }
                _ => {}
            }
            let lock = match open_lock(&path, true) {
                // Somebody removed a stale directory meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                lock => lock.map_err(host("open a lock in", &path))?,
            };
            match lock.try_lock() {
                Ok(()) if is_lock_of(&lock, &path) => return Entry::new(name, path, lock),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    pid = read_pid(&lock);
                    seen_alive += u32::from(pid.is_some_and(|pid| user::Process::open(pid).is_ok()));
                    if seen_alive == ATTEMPTS {
                        break;
                    }
                }
                Err(TryLockError::Error(error)) => return Err(host("lock", &path)(error)),
            }
        }
        Err(Error::Taken { name: name.to_string(), pid })
    }

    /// Takes a random name for a machine of this process.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn claim_any(&self) -> Result<Entry, Error> {
        for _ in 1..ATTEMPTS {
            match self.claim(&Name::random()) {
                Err(Error::Taken { .. }) => {}
                result => return result,
            }
        }
        self.claim(&Name::random())
    }

    /// All machines that run, by name. Stale entries are removed on the way.
    ///
    /// # Errors
    /// When the directory is there and cannot be used.
    pub fn machines(&self) -> Result<Vec<Machine>, Error> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(host("read the runtime directory", &self.path))?,
        };
        self.check()?;
        let mut machines: Vec<Machine> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Name>().ok())
            .filter_map(|name| Machine::find(&self.path.join(name.as_str()), &name))
            .collect();
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines)
    }

    /// Nobody else may be able to put entries in.
    fn check(&self) -> Result<(), Error> {
        let found = fs::symlink_metadata(&self.path).map_err(host("look at", &self.path))?;
        let reason = if !found.is_dir() {
            "it is not a directory"
        } else if found.uid() != user::effective() {
            "it belongs to another user"
        } else if found.mode() & 0o022 != 0 {
            "others may write to it"
        } else {
            return Ok(());
        };
        Err(Error::Unsafe { path: self.path.display().to_string(), reason })
    }
}

fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).mode(0o600).open(path.join(LOCK))
}

/// Whether `lock` is the lock that others would find in the entry at `path`.
fn is_lock_of(lock: &File, path: &Path) -> bool {
    is_at(lock, &path.join(LOCK))
}

fn read_pid(mut lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.rewind().ok()?;
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Removes all but the lock.
fn clear(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name() != LOCK {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the entry at `path`, whose lock the caller holds. The lock goes last: until then nobody else can claim the name.
fn remove(path: &Path) {
    clear(path);
    let _ = fs::remove_file(path.join(LOCK));
    // Not when somebody has claimed the name in this moment: a directory that is not empty stays.
    let _ = fs::remove_dir(path);
}

/// The entry of a machine of this process. It is removed when this value is dropped, and stale when the process is killed.
#[derive(Debug)]
pub struct Entry {
    name: Name,
    path: PathBuf,
    _lock: File,
}

impl Entry {
    fn new(name: &Name, path: PathBuf, mut lock: File) -> Result<Self, Error> {
        // What a killed machine may have left.
        clear(&path);
        let write = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        let entry = Entry { name: name.clone(), path, _lock: lock };
        write.map_err(host("write to", &entry.path))?;
        Ok(entry)
    }

    /// Name of the machine.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The machine's own directory. All files in it go with the machine.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the socket of the machine.
    ///
    /// # Errors
    /// When the host refuses, for example because the path is too long.
    pub fn listen(&self) -> Result<UnixListener, Error> {
        let path = self.path.join(SOCKET);
        let listener = socket::check_path(&path).and_then(|()| UnixListener::bind(&path));
        listener.map_err(host("listen at", &path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// A machine of any process that was alive a moment ago.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its process, if it has told already.
    pub pid: Option<u32>,
    /// Where it listens, or will.
    pub socket: PathBuf,
    lock: File,
}

impl Machine {
    fn find(path: &Path, name: &Name) -> Option<Self> {
        let lock = match open_lock(path, false) {
            Ok(lock) => lock,
            Err(_) => {
                // Perhaps the directory of somebody who was killed between two steps; not removed if there is more in it.
                let _ = fs::remove_dir(path);
                return None;
            }
        };
        if lock.try_lock().is_ok() {
            if is_lock_of(&lock, path) {
                remove(path);
            }
            return None;
        }
        let pid = read_pid(&lock);
        Some(Machine { name: name.to_string(), pid, socket: path.join(SOCKET), lock })
    }

    /// Its own directory.
    pub fn directory(&self) -> &Path {
        self.socket.parent().unwrap_or(&self.socket)
    }

    /// Whether the machine has ended, and all that it held is free.
    pub fn is_gone(&self) -> bool {
        // Shared, so that others who look at the same time are not taken for the machine.
        let gone = self.lock.try_lock_shared().is_ok();
        let _ = self.lock.unlock();
        gone
    }

    /// Ends the machine's process, however busy it is.
    ///
    /// # Errors
    /// When the process is not known, or belongs to another user.
    pub fn kill(&self) -> io::Result<()> {
        let process = user::Process::open(self.pid.ok_or(ErrorKind::NotFound)?)?;
        // While the lock is held, the number means the machine.
        if self.is_gone() { Ok(()) } else { process.kill() }
    }
}

#[cfg(test)]
mod tests;
