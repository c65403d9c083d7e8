//! Frames on one connection (`guest/agent/src/protocol.rs`), each waited for until a moment at most.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Error, accepted};
use crate::sys::socket;

/// Bytes of a message at most.
const LONGEST_MESSAGE: usize = 1 << 20;
/// Bytes of every other payload at most.
pub const LONGEST_PART: usize = 64 << 10;
/// Bytes before a payload.
const HEAD: usize = 5;
/// Longest answer to `CONNECT`: `OK`, a number and the end of the line.
const LONGEST_LINE: usize = 32;
/// Characters of a text from the guest that are shown.
const LONGEST_TEXT: usize = 500;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Message = 0,
    Input = 1,
    Output = 2,
    ErrorOutput = 3,
    Data = 4,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        [Kind::Message, Kind::Input, Kind::Output, Kind::ErrorOutput, Kind::Data]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A connection on which frames go both ways.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Connects to a port of the guest.
    pub fn connect(path: &Path, port: u32, timeout: Duration) -> Result<Self, Error> {
        let stream = socket::connect(path).map_err(Error::NoChannel)?;
        let mut channel = Channel { stream };
        let until = Some(Instant::now() + timeout);
        channel.stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1)))).map_err(Error::Lost)?;
        channel.stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(lost)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < LONGEST_LINE {
            match channel.wait(until, |stream| socket::read_line(stream, &mut line, LONGEST_LINE)) {
                // The device closes what the guest refuses.
                Err(Error::Lost(_)) => return Err(Error::NoAgent),
                result => result?,
            };
        }
        match line.starts_with(b"OK ") && line.ends_with(b"\n") {
            true => Ok(channel),
            false => Err(Error::Garbled("the machine's socket is no vsock device")),
        }
    }

    /// A connection that was made before.
    #[cfg(test)]
    pub fn over(stream: UnixStream) -> Self {
        Channel { stream }
    }

    /// The same connection for another thread, which only sends.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let stream = self.stream.try_clone().map_err(Error::Lost)?;
        Ok(Channel { stream })
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        debug_assert!(payload.len() <= if kind == Kind::Message { LONGEST_MESSAGE } else { LONGEST_PART });
        let mut frame = Vec::with_capacity(HEAD + payload.len());
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.push(kind as u8);
        frame.extend(payload);
        self.stream.write_all(&frame).map_err(lost)
    }

    /// Sends a message.
    pub fn say(&mut self, message: &Value) -> Result<(), Error> {
        let text = message.to_string();
        if text.len() > LONGEST_MESSAGE {
            return Err(Error::Host(io::Error::new(
                ErrorKind::InvalidInput,
                "the request is longer than 1 MiB",
            )));
        }
        self.send(Kind::Message, text.as_bytes())
    }

    /// Sends no longer than this without progress; for ever without a time.
    pub fn set_patience(&mut self, time: Option<Duration>) -> Result<(), Error> {
        self.stream.set_write_timeout(time).map_err(Error::Lost)
    }

    /// Waits for the next frame, for ever without a moment; its payload is in `payload`.
    pub fn receive(&mut self, payload: &mut Vec<u8>, until: Option<Instant>) -> Result<Kind, Error> {
        let mut head = [0; HEAD];
        self.fill(&mut head, until)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = Kind::read(head[4]).ok_or(Error::Garbled("it sends a frame of an unknown kind"))?;
        if len > if kind == Kind::Message { LONGEST_MESSAGE } else { LONGEST_PART } {
            return Err(Error::Garbled("it sends a frame that is too long"));
        }
        payload.resize(len, 0);
        self.fill(payload, until)?;
        Ok(kind)
    }

    /// Waits for a message.
    pub fn message(&mut self, timeout: Duration) -> Result<Value, Error> {
        let mut payload = Vec::new();
        match self.receive(&mut payload, Some(Instant::now() + timeout))? {
            Kind::Message => parse(&payload),
            _ => Err(Error::Garbled("it sends data where an answer is due")),
        }
    }

    /// That the guest has said nothing more and the connection is there. Does not wait.
    pub fn check_quiet(&self) -> Result<(), Error> {
        match socket::is_quiet(&self.stream).map_err(Error::Lost)? {
            true => Ok(()),
            false => Err(Error::Garbled("it speaks without being asked")),
        }
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, request: &Value, timeout: Duration) -> Result<Value, Error> {
        self.say(request)?;
        accepted(self.message(timeout)?)
    }

    fn fill(&mut self, mut to: &mut [u8], until: Option<Instant>) -> Result<(), Error> {
        while !to.is_empty() {
            let count = self.wait(until, |mut stream| stream.read(to))?;
            to = &mut to[count..];
        }
        Ok(())
    }

    /// Reads something until a moment.
    fn wait(
        &self,
        until: Option<Instant>,
        mut read: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Result<usize, Error> {
        loop {
            let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
            if rest == Some(Duration::ZERO) {
                return Err(Error::Silent);
            }
            self.stream.set_read_timeout(rest).map_err(Error::Lost)?;
            match read(&self.stream) {
                Ok(0) => return Err(Error::Lost(ErrorKind::UnexpectedEof.into())),
                Ok(count) => return Ok(count),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(Error::Lost(error)),
            }
        }
    }
}

/// What a message says.
pub fn parse(payload: &[u8]) -> Result<Value, Error> {
    match serde_json::from_slice(payload) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(Error::Garbled("it sends a message that is not JSON")),
    }
}

fn lost(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Silent,
        _ => Error::Lost(error),
    }
}

/// A text of the guest that does nothing to a terminal.
pub fn plain(text: &str) -> String {
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(LONGEST_TEXT).map(plain).collect()
}

/// A list of texts.
pub fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(plain)).collect()
}

/// Names with a reason each.
pub fn reasons(value: &Value) -> Vec<(String, String)> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(name, reason)| (plain(name), plain(reason.as_str().unwrap_or_default()))).collect()
}
