//! What agent and host say to each other.
//!
//! The agent listens at port 1023 of vsock, the last of those that only root may have. It answers to the host alone
//! (CID 2), whom it trusts. Each connection is served by a process of its own, one request after the other.
//!
//! ```text
//!   frame  = length: u32, little end first   bytes of payload
//!            kind: u8                        0 message, 1 input, 2 output, 3 error output, 4 data
//!            payload                         a message has at most 1 MiB, all others at most 64 KiB
//! ```
//!
//! A message is a JSON object in UTF-8. Other kinds are bytes of streams, and an empty one is the end of its stream. The
//! agent begins with `{"agent":"rvmm","protocol":1,"version":"…"}`. Then the host sends requests, `{"op":…}`, and
//! gets for each one answer, `{"ok":{…}}` or `{"error":"…"}` (with `"errno":N` where the kernel refused). New fields and
//! operations may come within a protocol: what is not known is ignored in answers, and refused as an operation.
//!
//! | operation | asks | answers |
//! |---|---|---|
//! | `ping` | | `time_ns` |
//! | `identity` | all optional: `hostname`, `machine_id`, `time_ns` (set if the clock is wrong by more than `tolerance_ns`, else 0), `entropy` (hexadecimal), `interfaces`: list of `name` (or `was`, the address by which it is found), `mac`, `address` (`10.0.0.2/24`), `gateway` | `done`: list of names, `failed`: object of reasons |
//! | `freeze` | `paths` (else all that are writable), `timeout_ms` (else 10000) | `frozen`: list of paths, `skipped`: object of reasons |
//! | `thaw` | | `thawed`: list of paths |
//! | `sync` | | |
//! | `exec` | `argv`; optional: `env` (object, added to the container's environment, or to a plain one), `cwd`, `user` (`USER[:GROUP]`), `tty`, `rows`, `cols` | `pid`; streams follow |
//! | `read` | `path` | `size`, `mode`; frames of data follow, an empty one, and a last answer |
//! | `write` | `path`, `mode` | go on; the host sends frames of data and an empty one, and gets a last answer |
//! | `shutdown` | `how`: `poweroff` or `reboot` | before it happens |
//!
//! `freeze` holds until `thaw` on the same connection, until the time is over, or until the connection is lost, as it is
//! when the machine is restored from a snapshot; SIGTERM and SIGINT end it no sooner. What was frozen by others stays so.
//!
//! While a command runs, the host sends input, and the messages `{"op":"resize","rows":R,"cols":C}` and
//! `{"op":"signal","number":N}`; the agent sends output and error output (all of it is output if there is a terminal), and
//! at the end `{"exit":{"status":N}}` or `{"exit":{"signal":N}}`. Then the connection ends. A command whose host goes away
//! gets SIGHUP.
//!
//! `identity` ends with the programs in `/etc/rvmm/clone.d`, by name, with what the host asked for in their environment:
//! `RVMM_HOSTNAME`, `RVMM_MACHINE_ID`, and for each interface, as `eth0`, `RVMM_ETH0_MAC`, `_ADDRESS` and `_GATEWAY`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent::json::{self, Value};

use crate::sys::{self, Errno, Fd, Result};

/// Where the agent listens.
pub const PORT: u32 = 1023;

/// The version of all this.
const PROTOCOL: i128 = 1;

/// Bytes of a message, and of every other payload, at most.
const LONGEST_MESSAGE: usize = 1 << 20;
/// As above.
pub const LONGEST_PART: usize = 64 << 10;

/// Bytes before a payload.
pub const HEAD: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Message = 0,
    Input = 1,
    Output = 2,
    ErrorOutput = 3,
    Data = 4,
}

/// Why a request failed.
pub struct Refusal {
    what: String,
    errno: Option<Errno>,
}

impl Refusal {
    /// The request makes no sense.
    pub fn new(what: &str) -> Self {
        Refusal { what: String::from(what), errno: None }
    }

    /// The kernel refused to do this.
    pub fn by(errno: Errno, doing: &str) -> Self {
        Refusal { what: format!("Cannot {doing}: {errno}"), errno: Some(errno) }
    }
}

/// The answer to a request.
pub type Answer = core::result::Result<Value, Refusal>;

/// One connection.
pub struct Channel {
    socket: Fd,
}

impl Channel {
    /// Speaks on `socket`.
    pub fn new(socket: Fd) -> Self {
        Channel { socket }
    }

    /// The socket.
    pub fn fd(&self) -> i32 {
        self.socket.0
    }

    /// Says who speaks.
    pub fn greet(&self) -> Result {
        self.send(&json::object([
            ("agent", json::text("rvmm")),
            ("protocol", Value::Number(PROTOCOL)),
            ("version", json::text(env!("CARGO_PKG_VERSION"))),
        ]))
    }

    /// The next frame, its payload in `payload`; `None` when the host has gone.
    pub fn receive(&self, payload: &mut Vec<u8>) -> Result<Option<Kind>> {
        let mut head = [0; HEAD];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = match head[4] {
            0 => Kind::Message,
            1 => Kind::Input,
            4 => Kind::Data,
            _ => return Err(Errno::INVAL),
        };
        if len > if kind == Kind::Message { LONGEST_MESSAGE } else { LONGEST_PART } {
            return Err(Errno::INVAL);
        }
        payload.clear();
        payload.resize(len, 0);
        Ok(self.fill(payload)?.then_some(kind))
    }

    /// The next frame, which must be a message.
    pub fn receive_message(&self, payload: &mut Vec<u8>) -> Result<Option<Value>> {
        match self.receive(payload)? {
            Some(Kind::Message) => Value::parse(payload).map(Some).ok_or(Errno::INVAL),
            Some(_) => Err(Errno::INVAL),
            None => Ok(None),
        }
    }

    fn fill(&self, mut to: &mut [u8]) -> Result<bool> {
        while !to.is_empty() {
            match sys::read(self.socket.0, to)? {
                0 => return Ok(false),
                got => to = &mut to[got..],
            }
        }
        Ok(true)
    }

    /// Sends a message.
    pub fn send(&self, message: &Value) -> Result {
        let mut text = String::new();
        message.write(&mut text);
        let mut frame = Vec::with_capacity(HEAD + text.len());
        frame.resize(HEAD, 0);
        frame.extend_from_slice(text.as_bytes());
        self.send_frame(Kind::Message, &mut frame)
    }

    /// Sends a frame: a payload behind [`HEAD`] bytes that are written here.
    pub fn send_frame(&self, kind: Kind, frame: &mut [u8]) -> Result {
        let len = (frame.len() - HEAD) as u32;
        frame[..4].copy_from_slice(&len.to_le_bytes());
        frame[4] = kind as u8;
        self.socket.write_all(frame)
    }

    /// Sends the answer to a request.
    pub fn answer(&self, answer: Answer) -> Result {
        self.send(&match answer {
            Ok(value) => json::object([("ok", value)]),
            Err(Refusal { what, errno: None }) => json::object([("error", Value::Text(what))]),
            Err(Refusal { what, errno: Some(errno) }) => {
                json::object([("error", Value::Text(what)), ("errno", Value::Number(errno.0.into()))])
            }
        })
    }
}

/// Nothing to tell but that it is done.
pub fn done() -> Value {
    json::object([])
}
