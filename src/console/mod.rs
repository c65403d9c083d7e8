//! Host side of the guest's console: where its output goes and where its input comes from.

mod escapes;
pub mod log;
mod output;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::options::{self, Options};
use crate::sys::lock;
use crate::sys::socket::Listener;
use crate::sys::terminal;
use log::Log;

pub use escapes::Escapes;
pub use output::Output;

/// Where the console is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Config {
    /// Standard input and output; a terminal becomes raw.
    #[default]
    Stdio,
    /// Nowhere.
    Off,
    /// Output is appended to a file, there is no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose path is told.
    Pty,
    /// A Unix socket that one client at a time connects to; without one, output is lost.
    Socket(PathBuf),
    /// Output is kept in the machine's own directory, or in one that stays when it ends, at most 2 MiB of it ([`log`]), and a
    /// client may connect to the socket [`SOCKET`] in its own directory: for machines in the background.
    Log,
}

/// Name of the console's socket in the machine's own directory.
pub const SOCKET: &str = "console.sock";

impl FromStr for Config {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        const KNOWN: [&str; 6] = ["stdio", "off", "log", "file", "pty", "socket"];
        let first = Options::parse(text, &[])?.first;
        let (key, value) = first.split_once('=').map_or((first, None), |(key, value)| (key, Some(value)));
        match key {
            "stdio" if value.is_none() => Ok(Config::Stdio),
            "off" if value.is_none() => Ok(Config::Off),
            "log" if value.is_none() => Ok(Config::Log),
            "pty" if value.is_none() => Ok(Config::Pty),
            "file" => Ok(Config::File(options::required(key, value, "a path")?.into())),
            "socket" => Ok(Config::Socket(options::required(key, value, "a path")?.into())),
            _ => Err(options::Error::UnknownKey {
                key: first.into(),
                nearest: options::nearest(key, &KNOWN).unwrap_or_default().into(),
                known: "stdio, off, log, file=PATH, pty, socket=PATH".into(),
            }),
        }
    }
}

/// Why the console could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file for the output.
    #[error("Cannot open the console file {path}")]
    File {
        /// Its path.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The socket.
    #[error("Cannot listen for the console on {path}")]
    Socket {
        /// Its path.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A log without a place.
    #[error(
        "The console cannot be kept in a log, for the machine has no directory: say --console file=PATH or off"
    )]
    NoDirectory,
    /// The pseudo-terminal, or standard input.
    #[error("Cannot open a terminal for the console")]
    Terminal(#[from] io::Error),
}

/// Where input comes from.
pub enum Input {
    /// A stream; `escapes` when a person sits there, who must have a way out.
    Stream {
        /// Readable.
        fd: OwnedFd,
        /// `Ctrl-A` is for the monitor.
        escapes: bool,
    },
    /// Clients of a socket.
    Listener {
        /// Where clients connect.
        listener: Listener,
        /// Who is connected now.
        client: Client,
    },
}

/// The client that is connected now.
pub type Client = Arc<Mutex<Option<UnixStream>>>;

/// An open console.
pub struct Console {
    /// Where the guest's output goes.
    pub output: Output,
    /// Where input comes from.
    pub input: Option<Input>,
    /// Where a person finds it, if that is not plain.
    pub place: Option<String>,
}

/// Opens the console of a machine that has this directory, with its log in `log` if it is not to be there, too.
///
/// # Errors
/// When a file, a socket or a terminal cannot be had.
pub fn open(config: &Config, directory: Option<&Path>, log: Option<&Path>) -> Result<Console, Error> {
    let (output, input, place) = match config {
        Config::Off => (Output::line(io::sink()), None, None),
        Config::Stdio => {
            let stdin = io::stdin();
            let escapes = terminal::is_terminal(stdin.as_fd());
            if escapes {
                terminal::make_raw(stdin.as_fd())?;
            }
            let fd = stdin.as_fd().try_clone_to_owned()?;
            // Not `io::stdout()`, whose lock and buffer would make a second copy of every byte.
            let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            (Output::stream(output), Some(Input::Stream { fd, escapes }), None)
        }
        Config::File(path) => {
            let file = open_file(path);
            let file = file.map_err(|source| Error::File { path: path.display().to_string(), source })?;
            (Output::stream(file), None, None)
        }
        Config::Pty => {
            let (program, user, path) = terminal::open_pty()?;
            let output = PtyOutput { program: program.try_clone()?.into(), _user: user };
            (Output::line(output), Some(Input::Stream { fd: program, escapes: false }), Some(path))
        }
        Config::Socket(path) => {
            let (input, client) = listen(path)?;
            (Output::line(SocketOutput { client, log: None }), Some(input), Some(path.display().to_string()))
        }
        Config::Log => {
            let directory = directory.ok_or(Error::NoDirectory)?;
            let (input, client) = listen(&directory.join(SOCKET))?;
            let log = Log::new(log.unwrap_or(directory));
            (Output::line(SocketOutput { client, log: Some(log) }), Some(input), None)
        }
    };
    Ok(Console { output, input, place })
}

/// Opens a file, or a pipe that is read: one that is not would keep us waiting here, where no signal is heard.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match options.append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            Err(io::Error::new(error.kind(), "nobody reads from there"))
        }
        file => file,
    }
}

fn listen(path: &Path) -> Result<(Input, Client), Error> {
    let listen = || {
        let listener = Listener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listen().map_err(|source| Error::Socket { path: path.display().to_string(), source })?;
    let client = Client::default();
    Ok((Input::Listener { listener, client: Arc::clone(&client) }, client))
}

/// Output to a pseudo-terminal. Its user's side is held open: while nobody has it open, the program's side fails (pty(7)).
struct PtyOutput {
    program: File,
    _user: OwnedFd,
}

impl Write for PtyOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.program.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output to whoever is connected, and to a log. A client that does not read loses bytes; it never holds the guest up.
struct SocketOutput {
    client: Client,
    log: Option<Log>,
}

impl Write for SocketOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full disk must not keep a client from what the guest says.
        let logged = self.log.as_mut().map_or(Ok(()), |log| log.write_all(bytes));
        let mut client = lock(&self.client);
        if let Some(stream) = client.as_mut() {
            match stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => *client = None,
                Ok(_) => {}
            }
        }
        logged.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, config) in [
            ("stdio", Config::Stdio),
            ("off", Config::Off),
            ("log", Config::Log),
            ("pty", Config::Pty),
            ("file=a=b", Config::File("a=b".into())),
            ("socket=/s", Config::Socket("/s".into())),
        ] {
            assert_eq!(text.parse(), Ok(config));
        }
        let error = "studio".parse::<Config>().unwrap_err().to_string();
        assert!(error.contains("did you mean `stdio`"), "{error}");
        assert!("file".parse::<Config>().is_err() && "file=".parse::<Config>().is_err());
    }
}
