//! Directories that go with the process that uses them.
//!
//! ```text
//!   PARENT/
//!   └─ PREFIX PID-NUMBER/    0700, locked (flock(2)) as long as a process has it
//!
//!   new:   mkdir ─► lock ─► is it still there? ─► ours
//!             ▲       │ taken       │ no: somebody took it for a stale one
//!             └───────┴─────────────┘ again, under the next number
//! ```
//!
//! One whose lock is free was left by a process that was killed. Whoever makes the next of the same prefix removes it, with
//! the lock held until it is gone.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of this process, removed with all that is in it when this value is dropped. A forked child that drops its copy leaves
/// the directory to its parent; as long as it has the copy, nobody takes the directory for a stale one.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The process that made it.
    owner: u32,
    _lock: File,
}

impl Scratch {
    /// Makes a directory in `parent` whose name begins with `prefix`, which no other kind of entry there does, and removes
    /// those that killed processes have left.
    ///
    /// # Errors
    /// When the host refuses a directory in `parent`.
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_stale(parent, prefix);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{prefix}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let lock = match open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                lock => lock?,
            };
            match lock.try_lock() {
                Ok(()) if path.exists() => {
                    return Ok(Scratch { path, owner: std::process::id(), _lock: lock });
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Opens a directory and nothing else: what lies in the place of one may be anything.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

fn remove_stale(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && let Ok(lock) = open(&entry.path())
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn names(parent: &Path) -> usize {
        fs::read_dir(parent).unwrap().count()
    }

    #[test]
    fn goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) =
            (Scratch::new(parent.path(), "a-").unwrap(), Scratch::new(parent.path(), "a-").unwrap());
        fs::write(one.path().join("file"), "1").unwrap();
        assert_eq!(names(parent.path()), 2);
        drop(one);
        assert!(two.path().is_dir());
        drop(two);
        assert_eq!(names(parent.path()), 0);
    }

    #[test]
    fn what_a_killed_process_has_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["a-1-7", "a-2", "b-1"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        fs::write(parent.path().join("a-file"), "").unwrap();
        let scratch = Scratch::new(parent.path(), "a-").unwrap();
        assert!(parent.path().join("b-1").exists() && parent.path().join("a-file").exists());
        assert_eq!(names(parent.path()), 3);
        drop(scratch);
    }

    #[test]
    fn many_at_once_leave_each_other_alone() {
        let parent = tempfile::tempdir().unwrap();
        let work = || {
            for _ in 0..200 {
                let scratch = Scratch::new(parent.path(), "a-").unwrap();
                fs::write(scratch.path().join("one"), "1").unwrap();
                fs::write(scratch.path().join("two"), "2").unwrap();
                assert_eq!(names(scratch.path()), 2);
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
        assert_eq!(names(parent.path()), 0);
    }
}
