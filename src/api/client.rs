//! The other side of the socket: asks a running machine and waits for the answer, but not for ever.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sys::socket;

/// The longest answer in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at its socket: it starts or ends.
    #[error("The machine is not listening")]
    Absent {
        /// The host's answer.
        source: io::Error,
    },
    /// Its time is over: its process is stopped or stuck.
    #[error("The machine does not answer")]
    Silent,
    /// It refused, and says why.
    #[error("{message}")]
    Refused {
        /// HTTP's number.
        status: u16,
        /// What the machine says.
        message: String,
    },
    /// What it says is not an answer.
    #[error("The machine gives an answer that is not understood")]
    Garbled,
    /// The connection broke.
    #[error("The connection to the machine is lost")]
    Lost(#[source] io::Error),
}

/// A connection to a machine.
pub struct Client {
    stream: UnixStream,
    deadline: Instant,
    input: Vec<u8>,
}

/// Asks one thing; `timeout` is for all of it. Returns `Null` when the machine has nothing to say.
///
/// # Errors
/// When the machine refuses, or is not there, or does not answer in time.
pub fn call(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Value, Error> {
    let mut client = Client::connect(socket, timeout)?;
    client.send(method, path, body)?;
    client.receive()
}

impl Client {
    /// Connects to the socket of a machine; `timeout` is for all that is done with this connection.
    ///
    /// # Errors
    /// [`Error::Absent`], or [`Error::Silent`] when many others wait there already.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, Error> {
        let stream = socket::connect(socket).map_err(|source| match source.kind() {
            ErrorKind::WouldBlock => Error::Silent,
            _ => Error::Absent { source },
        })?;
        Ok(Client { stream, deadline: Instant::now() + timeout, input: Vec::new() })
    }

    /// Gives what is done with this connection from now on so much time.
    pub fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Sends a request without waiting for its answer.
    ///
    /// # Errors
    /// When the machine does not take it in time, or the connection is lost.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(), Error> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let len = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        );
        self.stream.set_write_timeout(Some(self.rest()?)).map_err(Error::Lost)?;
        self.stream.write_all(request.as_bytes()).map_err(lost)
    }

    /// Waits for the answer to a request.
    ///
    /// # Errors
    /// When the machine refuses, does not answer in time, or the connection is lost.
    pub fn receive(&mut self) -> Result<Value, Error> {
        loop {
            if let Some((status, body)) = self.answer()? {
                let body = match body.is_empty() {
                    true => Value::Null,
                    false => serde_json::from_slice(&body).map_err(|_| Error::Garbled)?,
                };
                return match (200..300).contains(&status) {
                    true => Ok(body),
                    false => {
                        let said = body["fault_message"].as_str();
                        let message = said.map_or_else(|| format!("HTTP status {status}"), String::from);
                        Err(Error::Refused { status, message })
                    }
                };
            }
            self.stream.set_read_timeout(Some(self.rest()?)).map_err(Error::Lost)?;
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes).map_err(lost)? {
                0 => return Err(Error::Lost(ErrorKind::UnexpectedEof.into())),
                count => self.input.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// Takes status and body of an answer out of what has come; `None` when it is not complete.
    fn answer(&mut self) -> Result<Option<(u16, Vec<u8>)>, Error> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let head = match response.parse(&self.input) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if self.input.len() < MAX_ANSWER => return Ok(None),
            _ => return Err(Error::Garbled),
        };
        let status = response.code.ok_or(Error::Garbled)?;
        let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length: usize = match length {
            None => 0,
            Some(field) => std::str::from_utf8(field.value)
                .ok()
                .and_then(|digits| digits.trim().parse().ok())
                .filter(|&length| length <= MAX_ANSWER)
                .ok_or(Error::Garbled)?,
        };
        let Some(body) = self.input.get(head..head + length) else { return Ok(None) };
        let body = body.to_vec();
        self.input.drain(..head + length);
        Ok(Some((status, body)))
    }

    /// The time that is left; sockets know no time-out of zero.
    fn rest(&self) -> Result<Duration, Error> {
        let rest = self.deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() { Err(Error::Silent) } else { Ok(rest) }
    }
}

fn lost(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Silent,
        _ => Error::Lost(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::testing::PATIENCE;

    const SHORT: Duration = Duration::from_millis(100);

    fn listen() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, path, listener)
    }

    /// What a client makes of a machine that says `text` and hangs up.
    fn hears(text: &'static str) -> Result<Value, Error> {
        let (_directory, path, listener) = listen();
        let machine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(text.as_bytes());
        });
        let answer = call(&path, "GET", "/", None, PATIENCE);
        machine.join().unwrap();
        answer
    }

    #[test]
    fn understands_answers() {
        assert_eq!(hears("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42").unwrap(), 42);
        assert_eq!(hears("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), Value::Null);
        let refused = hears("HTTP/1.1 409 Conflict\r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"No\"}");
        assert_eq!(refused.unwrap_err().to_string(), "No");
    }

    #[test]
    fn does_not_trust_answers() {
        for text in [
            "hello",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]}",
        ] {
            assert!(matches!(hears(text), Err(Error::Garbled)), "{text}");
        }
        for text in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n42"] {
            assert!(matches!(hears(text), Err(Error::Lost(_))), "{text}");
        }
    }

    #[test]
    fn does_not_wait_for_ever() {
        let (_directory, path, _listener) = listen();
        let start = Instant::now();
        assert!(matches!(call(&path, "GET", "/", None, SHORT), Err(Error::Silent)));
        let large = Value::String("x".repeat(4 << 20));
        assert!(matches!(call(&path, "PUT", "/", Some(&large), SHORT), Err(Error::Silent)));
        assert!(start.elapsed() < PATIENCE);
        let _waiting: Vec<_> = std::iter::from_fn(|| Client::connect(&path, SHORT).ok()).collect();
        assert!(matches!(call(&path, "GET", "/", None, SHORT), Err(Error::Silent)));
    }
}
