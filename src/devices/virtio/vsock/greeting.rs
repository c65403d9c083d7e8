//! What a client on the host says first: `CONNECT <port>`, and a new line (Firecracker's convention).

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::sys::socket;

/// The longest line, its end included.
const LONGEST: usize = 32;

/// A client that has not said yet which port it wants.
#[derive(Debug)]
pub struct Greeting {
    socket: UnixStream,
    line: Vec<u8>,
}

/// How far a client is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line has not ended.
    Waiting,
    /// It wants this port of the guest.
    Port(u32),
    /// It is gone or says something else.
    Bad,
}

impl Greeting {
    /// Listens to `socket`, which does not block.
    pub fn new(socket: UnixStream) -> Self {
        Greeting { socket, line: Vec::new() }
    }

    /// Reads what is there, but nothing behind the end of the line: that is for the guest.
    pub fn read(&mut self) -> Progress {
        while self.line.len() < LONGEST {
            match socket::read_line(&self.socket, &mut self.line, LONGEST) {
                Ok(0) => return Progress::Bad,
                Ok(_) if self.line.ends_with(b"\n") => {
                    return port(&self.line).map_or(Progress::Bad, Progress::Port);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Bad,
            }
        }
        Progress::Bad
    }

    /// The client, once it has said what it wants.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }
}

impl AsRawFd for Greeting {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let is_all = words.next().is_none() && verb.eq_ignore_ascii_case("CONNECT");
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    // The last number stands for any port.
    port.parse().ok().filter(|&port| is_all && is_number && port != u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn greeting() -> (UnixStream, Greeting) {
        let (client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        (client, Greeting::new(socket))
    }

    #[test]
    fn understands_a_line_in_any_pieces() {
        for cut in 0..14 {
            let (mut client, mut greeting) = greeting();
            let (head, tail) = b"CONNECT 1024\nhello".split_at(cut);
            client.write_all(head).unwrap();
            let early = greeting.read();
            client.write_all(tail).unwrap();
            if early == Progress::Waiting {
                assert_eq!(greeting.read(), Progress::Port(1024));
            } else {
                assert_eq!(early, Progress::Port(1024));
            }
            let mut rest = [0; 5];
            greeting.into_socket().read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"hello", "nothing is read beyond the line");
        }
    }

    #[test]
    fn refuses_other_words() {
        for line in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT x\n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967295\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"GET / HTTP/1.1\r\n",
            b"\xff\xfe 1\n",
            b"CONNECT 0000000000000000000000000000001\n",
            &[b'x'; 100],
        ] {
            let (mut client, mut greeting) = greeting();
            client.write_all(line).unwrap();
            assert_eq!(greeting.read(), Progress::Bad, "{}", line.escape_ascii());
        }
        for (line, wanted) in [(&b"connect 5\r\n"[..], 5), (b"CONNECT 4294967294\n", u32::MAX - 1)] {
            let (mut client, mut greeting) = greeting();
            client.write_all(line).unwrap();
            assert_eq!(greeting.read(), Progress::Port(wanted));
        }
        let (client, mut greeting) = greeting();
        drop(client);
        assert_eq!(greeting.read(), Progress::Bad);
    }
}
