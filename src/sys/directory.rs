//! A directory that is held open: its files are those that it has, whatever stands at its path meanwhile (openat(2)).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory.
#[derive(Debug)]
pub struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        Ok(Directory { file, path: path.into() })
    }

    /// The path that it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user and the group that it belongs to.
    pub fn owner(&self) -> io::Result<(u32, u32)> {
        self.file.metadata().map(|directory| (directory.uid(), directory.gid()))
    }

    /// Whether it is still what is at its path.
    pub fn is_in_place(&self) -> bool {
        let (here, there) = (self.file.metadata(), fs::metadata(&self.path));
        let same = here
            .and_then(|here| Ok((here.dev(), here.ino()) == there.map(|there| (there.dev(), there.ino()))?));
        same.unwrap_or(false)
    }

    /// Opens a regular file in it for reading. Nothing is followed and nothing waited for: links, pipes and devices are
    /// refused.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = self
            .open_file(&CString::new(name)?, flags)
            .map_err(|error| if error.raw_os_error() == Some(libc::ELOOP) { not_regular() } else { error })?;
        if !file.metadata()?.is_file() {
            return Err(not_regular());
        }
        // Only the opening was not to wait.
        // SAFETY: a call without pointers on a descriptor that is open.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
            0 => Ok(file),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Puts a file of its owner's alone into it, in place of one that may be there: whoever looks finds one of them, whole.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = CString::new(format!(".{name}.{}", std::process::id()))?;
        let (name, directory) = (CString::new(name)?, self.file.as_raw_fd());
        let mut file = self.open_file(&draft, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?;
        let put = file.write_all(bytes).and_then(|()| {
            // SAFETY: both names are C strings that live until after the call.
            match unsafe { libc::renameat(directory, draft.as_ptr(), directory, name.as_ptr()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        if put.is_err() {
            // SAFETY: as above.
            unsafe { libc::unlinkat(directory, draft.as_ptr(), 0) };
        }
        put
    }

    fn open_file(&self, name: &CStr, flags: libc::c_int) -> io::Result<File> {
        let (flags, mode) = (flags | libc::O_CLOEXEC, 0o600 as libc::c_uint);
        // SAFETY: the name is a C string that lives until after the call.
        let fd = unsafe { libc::openat(self.file.as_raw_fd(), name.as_ptr(), flags, mode) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    /// Reads a whole regular file in it, of at most `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let len = file.metadata()?.len();
        if len <= limit {
            // With some room behind it: one read(2) brings all of it, a second one its end.
            let mut bytes = Vec::with_capacity(len as usize + 32);
            file.take(limit + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 <= limit {
                return Ok(bytes);
            }
        }
        Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")))
    }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_its_own_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path()).unwrap();
        fs::write(root.path().join("file"), "12345").unwrap();
        assert_eq!(directory.read("file", 5).unwrap(), b"12345");
        assert_eq!(directory.read("file", 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        symlink("file", root.path().join("link")).unwrap();
        symlink("/dev/zero", root.path().join("endless")).unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        // Nobody writes to it: whoever waited for that would wait for ever.
        assert!(Command::new("mkfifo").arg(root.path().join("pipe")).status().unwrap().success());
        for name in ["link", "endless", "directory", "pipe"] {
            assert_eq!(directory.read(name, 5).unwrap_err().to_string(), "it is not a regular file");
        }
        assert_eq!(directory.file("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_put_in_place_of_whatever_is_there() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path()).unwrap();
        fs::write(root.path().join("other"), "other").unwrap();
        symlink("other", root.path().join("file")).unwrap();
        for text in ["first", "second"] {
            directory.put("file", text.as_bytes()).unwrap();
            assert_eq!(directory.read("file", 9).unwrap(), text.as_bytes());
        }
        assert_eq!(fs::read(root.path().join("other")).unwrap(), b"other");
        assert_eq!(fs::metadata(root.path().join("file")).unwrap().mode() & 0o777, 0o600);
        // What cannot be put there leaves nothing.
        fs::create_dir(root.path().join("directory")).unwrap();
        assert!(directory.put("directory", b"").is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
    }

    #[test]
    fn its_files_stay_when_another_takes_its_place() {
        let root = tempfile::tempdir().unwrap();
        let (here, there) = (root.path().join("here"), root.path().join("there"));
        fs::create_dir(&here).unwrap();
        fs::write(here.join("file"), "first").unwrap();
        let directory = Directory::open(&here).unwrap();
        assert!(directory.is_in_place());
        fs::rename(&here, there).unwrap();
        assert!(!directory.is_in_place());
        fs::create_dir(&here).unwrap();
        fs::write(here.join("file"), "second").unwrap();
        assert_eq!(directory.read("file", 9).unwrap(), b"first");
        assert!(!directory.is_in_place());
    }
}
