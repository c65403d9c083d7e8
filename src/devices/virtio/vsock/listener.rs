//! The unix socket of the host at which connections to the guest begin (`unix(7)`).

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;

use crate::sys::socket;

/// The longest path of a unix socket in bytes.
const LONGEST: usize = 107;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel takes no such path.
    #[error("The path of a socket has at most {LONGEST} bytes, this one has {len}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A process listens there.
    #[error("Another process listens at this socket")]
    InUse,
    /// There is something else.
    #[error("There is a file at this path, and it is no socket")]
    NotSocket,
    /// The host refused.
    #[error("Cannot listen")]
    Listen(#[source] io::Error),
}

/// The socket. Its file is removed with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. The socket of a process that has died is replaced.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let len = path.as_os_str().as_bytes().len();
        if len > LONGEST {
            return Err(Error::TooLong { len });
        }
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                clear(path)?;
                UnixListener::bind(path)
            }
            result => result,
        };
        let socket = socket.map_err(Error::Listen)?;
        socket.set_nonblocking(true).map_err(Error::Listen)?;
        Ok(Listener { socket, path: path.into(), file: identity(path) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, which never blocks; `None` when nobody waits.
    ///
    /// # Errors
    /// The host has no room for a client now.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let result = self.socket.accept();
            return match result {
                Ok((client, _)) => client.set_nonblocking(true).map(|()| Some(client)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => Ok(None),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => Err(error),
                },
            };
        }
    }
}

/// Removes what a process that has died left at `path`.
fn clear(path: &Path) -> Result<(), Error> {
    let found = fs::symlink_metadata(path).map_err(Error::Listen)?;
    if !found.file_type().is_socket() {
        return Err(Error::NotSocket);
    }
    match socket::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            debug!("Removing {}, which a process that has died left", path.display());
            fs::remove_file(path).map_err(Error::Listen)
        }
        // Removed in this moment.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Error::Listen(error)),
        _ => Err(Error::InUse),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Not if somebody has put something else there.
        if self.file.is_some() && identity(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_place_of_the_dead_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let living = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse)));
        assert!(path.exists());
        drop(living);
        assert!(!path.exists(), "the file goes with the listener");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves a stale socket");
        let listener = Listener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some() && listener.accept().unwrap().is_none());
        drop(client);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(listener);
        assert!(matches!(Listener::bind(&path), Err(Error::NotSocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn refuses_what_cannot_be_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(LONGEST));
        assert!(matches!(Listener::bind(&long), Err(Error::TooLong { .. })));
        let fits = "x".repeat(LONGEST - 1 - directory.path().as_os_str().len());
        Listener::bind(&directory.path().join(fits)).unwrap();
        let nowhere = directory.path().join("no/v.sock");
        assert!(matches!(Listener::bind(&nowhere), Err(Error::Listen(_))));
    }
}
