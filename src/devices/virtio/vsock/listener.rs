//! The unix socket of the host at which connections to the guest begin (`unix(7)`).

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::sys::socket;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

/// The socket, which is this user's alone. Its file is removed with it.
#[derive(Debug)]
pub struct Listener(socket::Listener);

impl Listener {
    /// Listens at `path`. The socket of a process that has died is replaced.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let listener = socket::Listener::bind(path).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse if socket::is_socket(path) => Error::InUse,
            ErrorKind::AddrInUse => Error::NotSocket,
            _ => Error::Listen(error),
        })?;
        listener.set_nonblocking(true).map_err(Error::Listen)?;
        Ok(Listener(listener))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The next client, which never blocks; `None` when nobody waits.
    ///
    /// # Errors
    /// The host has no room for a client now.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let result = self.0.accept();
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

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn takes_the_place_of_the_dead_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let living = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse)));
        assert!(path.exists());
        drop(living);
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
        for path in [directory.path().join("no/v.sock"), "".into()] {
            assert!(matches!(Listener::bind(&path), Err(Error::Listen(_))));
        }
    }
}
