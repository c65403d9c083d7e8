//! Unix stream sockets that are connected within a time, and their buffers (connect(2), unix(7), socket(7)).

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest path of a socket in bytes: one more stays for the zero at the end.
pub const LONGEST_PATH: usize = 107;

/// Checks that a socket can have this path. Without one, the kernel would give it a name that everybody on the host can connect to.
///
/// # Errors
/// `InvalidInput`, which says why.
pub fn check_path(path: &Path) -> io::Result<()> {
    let bytes = path.as_os_str().as_bytes();
    let reason = match bytes.len() {
        0 => "a socket needs a path".into(),
        len if len > LONGEST_PATH => {
            format!("the path of a socket has at most {LONGEST_PATH} bytes, this one has {len}")
        }
        _ if bytes.contains(&0) => "the path of a socket has no zero byte".into(),
        _ => return Ok(()),
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Connects to the socket at `path`, unless its queue of waiting clients is full: a process that was
/// stopped accepts nobody.
///
/// # Errors
/// `WouldBlock` when the queue is full, `NotFound` and `ConnectionRefused` when nobody listens.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = address(path)?;
    let fd = socket(libc::SOCK_NONBLOCK)?;
    // SAFETY: the kernel reads `LENGTH` bytes of `address`, which lives for the call.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), LENGTH) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Listens at `path`, for this user alone from the first moment on. The process's umask stays as it is: other threads make files.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = address(path)?;
    let fd = socket(0)?;
    // SAFETY: calls with numbers, and one that reads `LENGTH` bytes of `address`, which lives for it.
    let listens = unsafe {
        // The file will have the mode of the socket.
        libc::fchmod(fd.as_raw_fd(), 0o600) == 0
            && libc::bind(fd.as_raw_fd(), (&raw const address).cast(), LENGTH) == 0
            && libc::listen(fd.as_raw_fd(), -1) == 0
    };
    if listens { Ok(fd.into()) } else { Err(io::Error::last_os_error()) }
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// The address of the socket at `path`.
fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: `sockaddr_un` is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    check_path(path)?;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

/// A new stream socket.
fn socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags;
    // SAFETY: plain call; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    // SAFETY: a fresh descriptor that nobody else owns.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Reads on in a line that `line` has the beginning of, with all that is there in one go and nothing behind the line's end, until it
/// has `longest` bytes. Returns how many came; 0 when the other end is closed or there is no room.
///
/// # Errors
/// As of recv(2); nothing is lost then.
pub fn read_line(socket: &UnixStream, line: &mut Vec<u8>, longest: usize) -> io::Result<usize> {
    let mut part = vec![0; longest.saturating_sub(line.len())];
    let there = receive(socket, &mut part, libc::MSG_PEEK)?;
    let end = part[..there].iter().position(|&byte| byte == b'\n').map_or(there, |end| end + 1);
    let taken = receive(socket, &mut part[..end], 0)?;
    line.extend_from_slice(&part[..taken]);
    Ok(taken)
}

/// Whether both ends are open and nothing has come that is not read. Does not wait.
///
/// # Errors
/// As of recv(2); `UnexpectedEof` when the other end is closed.
pub fn is_quiet(socket: &UnixStream) -> io::Result<bool> {
    match receive(socket, &mut [0], libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

fn receive(socket: &UnixStream, to: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as `to` has.
    let count = unsafe { libc::recv(socket.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Gives `socket` room for `bytes` that its other end has not read: all of it if this process may, else as much as
/// the host gives everybody. Returns the room in bytes that there is, of which the kernel's own expenses take a part.
pub fn enlarge(socket: &UnixStream, bytes: u32) -> io::Result<u32> {
    let wanted = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
        // SAFETY: the kernel reads one `int`, which lives for the call.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const wanted).cast(), len)
        };
        if result == 0 {
            break;
        }
    }
    let mut room: libc::c_int = 0;
    // SAFETY: the kernel writes one `int` and its size, which live for the call.
    let result = unsafe {
        let (room, len) = ((&raw mut room).cast(), &raw mut len);
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, room, len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(room.unsigned_abs()) }
}

/// A socket at which clients of this user alone can connect. Its file is removed with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. The socket of a process that is gone is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when a process listens there, or there is something else.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = match listen(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match connect(path) {
                Err(refused) if is_socket(path) && refused.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                    listen(path)
                }
                _ => Err(error),
            },
            result => result,
        }?;
        Ok(Listener { socket, path: path.into(), file: identity(path) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Listener {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        &self.socket
    }
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

/// Whether a socket lies at `path`.
pub fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket())
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_it_has_room_for() {
        let (near, far) = UnixStream::pair().unwrap();
        let before = enlarge(&near, 1 << 16).unwrap();
        let room = enlarge(&near, 1 << 20).unwrap();
        assert!(room > before);
        near.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = io::Write::write(&mut &near, &[0; 61_440]) {
            sent += count;
        }
        assert!(sent >= room as usize / 4 * 3, "{sent} of {room} bytes");
        drop(far);
    }

    #[test]
    fn reads_a_line_and_nothing_behind_it() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let mut line = Vec::new();
        for (part, count) in [("OK", 2), (" 12", 3), ("34\nrest", 3)] {
            io::Write::write_all(&mut far, part.as_bytes()).unwrap();
            assert_eq!(read_line(&near, &mut line, 32).unwrap(), count, "{part}");
        }
        assert_eq!(line, b"OK 1234\n");
        let mut rest = [0; 4];
        io::Read::read_exact(&mut near, &mut rest).unwrap();
        assert_eq!(&rest, b"rest");
        near.set_nonblocking(true).unwrap();
        assert_eq!(read_line(&near, &mut line, 32).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        io::Write::write_all(&mut far, &[b'x'; 100]).unwrap();
        let mut line = b"1234".to_vec();
        assert_eq!((read_line(&near, &mut line, 32).unwrap(), line.len()), (28, 32));
        assert_eq!(read_line(&near, &mut line, 32).unwrap(), 0, "there is no room");
        drop(far);
        let mut line = Vec::new();
        while read_line(&near, &mut line, 200).unwrap() > 0 {}
        assert_eq!(line, [b'x'; 72]);
    }

    #[test]
    fn is_quiet_until_something_comes_or_it_ends() {
        let (near, mut far) = UnixStream::pair().unwrap();
        assert!(is_quiet(&near).unwrap());
        io::Write::write_all(&mut far, b"x").unwrap();
        assert!(!is_quiet(&near).unwrap() && !is_quiet(&near).unwrap(), "it is read by others");
        io::Read::read_exact(&mut &near, &mut [0]).unwrap();
        assert!(is_quiet(&near).unwrap());
        drop(far);
        assert_eq!(is_quiet(&near).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Ends it also for a child of another test that has not come to its own program yet.
    fn end(listener: UnixListener) {
        UnixStream::from(OwnedFd::from(listener)).shutdown(std::net::Shutdown::Both).unwrap();
    }

    #[test]
    fn many_listen_at_once_and_the_umask_stays() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let work = |thread: u32| {
            for number in 0..50 {
                let path = directory.path().join(format!("{thread}-{number}"));
                let _listener = Listener::bind(&path).unwrap();
                fs::create_dir(path.with_extension("d")).unwrap();
                let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o700;
                assert_eq!((mode(&path), mode(&path.with_extension("d"))), (0o600, 0o700));
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || work(thread)))));
    }

    #[test]
    fn listens_for_this_user_in_the_place_of_the_dead() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let living = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
        assert!(!path.exists(), "the file goes with the listener");
        end(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves a stale socket");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(listener);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn paths_have_a_length() {
        let directory = tempfile::tempdir().unwrap();
        let room = LONGEST_PATH - 1 - directory.path().as_os_str().len();
        Listener::bind(&directory.path().join("x".repeat(room))).unwrap();
        let long = directory.path().join("x".repeat(room + 1));
        for (path, why) in [(&*long, "at most 107 bytes, this one has 108"), (Path::new(""), "needs a path")]
        {
            for error in [Listener::bind(path).unwrap_err(), connect(path).unwrap_err()] {
                assert!(error.to_string().contains(why), "{error}");
            }
        }
    }

    #[test]
    fn never_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "the queue is never full");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        end(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
