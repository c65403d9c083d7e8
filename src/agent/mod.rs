//! Host side of the guest agent: what only a program in the guest can do, asked for over vsock.
//!
//! `guest/agent/src/protocol.rs` describes frames and operations. A connection is one unix socket of the vsock device
//! (Firecracker's `CONNECT` convention); it is blocking, and every wait has an end. The guest is hostile: whatever it says is
//! bounded in size and checked, and text from it is never printed as it came.
//!
//! ```text
//!   Client::connect ── ping, identity, sync ──► again
//!                   ├─ read, write ───────────► again, when the whole file has passed
//!                   ├─ freeze ────────────────► Frozen: thaws when it is dropped
//!                   ├─ exec ──────────────────► Running: streams, and the end of the command
//!                   └─ shutdown
//! ```

mod channel;
mod exec;
#[cfg(test)]
pub mod fake;
mod files;
mod identity;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use channel::Channel;

pub use exec::{Command, Control, End, Event, Running, Size};
pub use files::Download;
pub use identity::{Identity, Interface, Outcome};

/// Where the agent listens.
pub const PORT: u32 = 1023;

/// The version of the protocol that is spoken here.
const PROTOCOL: u64 = 1;

/// How long a guest may take for what needs no time.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the socket of the machine.
    #[error("The machine has no channel to its guest")]
    NoChannel(#[source] io::Error),
    /// The guest refuses the connection.
    #[error("No agent answers in the guest: rvmm-agent must run there, with the guest's vsock driver")]
    NoAgent,
    /// The time is over.
    #[error("The guest does not answer: it has no vsock driver, or it is paused or very busy")]
    Silent,
    /// What it says is not in the protocol.
    #[error("The guest's agent is not understood: {0}")]
    Garbled(&'static str),
    /// It speaks another protocol.
    #[error("The guest's agent speaks protocol {found}, this rvmm {PROTOCOL}")]
    Protocol {
        /// The version of the guest.
        found: u64,
    },
    /// It refused, and says why.
    #[error("The guest says: {message}")]
    Refused {
        /// What it says, made fit for a terminal.
        message: String,
        /// The number of the guest kernel's error, if that refused.
        errno: Option<i32>,
    },
    /// File systems hold still for a time only.
    #[error("The guest's file systems were to hold still for {seconds} s at most, and that time was over")]
    Thawed {
        /// How long they were to.
        seconds: u64,
    },
    /// The connection broke.
    #[error("The connection to the guest is lost")]
    Lost(#[source] io::Error),
    /// The host's side of a copy.
    #[error("Cannot copy on the host")]
    Host(#[source] io::Error),
}

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects through the socket of the machine's vsock device; the agent has to answer within `timeout`.
    ///
    /// # Errors
    /// [`Error::NoChannel`], [`Error::NoAgent`] or [`Error::Silent`] tell what is missing.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, Error> {
        Client::greet(Channel::connect(socket, PORT, timeout)?, timeout)
    }

    /// Hears who is there.
    fn greet(mut channel: Channel, timeout: Duration) -> Result<Self, Error> {
        let greeting = channel.message(timeout)?;
        if greeting["agent"] != "rvmm" {
            return Err(Error::Garbled("it does not say who it is"));
        }
        match greeting["protocol"].as_u64() {
            Some(PROTOCOL) => Ok(Client { channel }),
            Some(found) => Err(Error::Protocol { found }),
            None => Err(Error::Garbled("it does not say its version")),
        }
    }

    /// Asks for its clock.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn ping(&mut self) -> Result<SystemTime, Error> {
        let answer = self.channel.ask(&json!({ "op": "ping" }), PATIENCE)?;
        let time = answer["time_ns"].as_u64().ok_or(Error::Garbled("it does not tell the time"))?;
        Ok(UNIX_EPOCH + Duration::from_nanos(time))
    }

    /// Makes the guest somebody; the agent may take `timeout` for it.
    ///
    /// # Errors
    /// When the agent does not answer; what it could not do is in the outcome.
    pub fn identity(&mut self, identity: &Identity, timeout: Duration) -> Result<Outcome, Error> {
        Outcome::read(&self.channel.ask(&identity.request(), timeout)?)
    }

    /// Has all that was written reach the guest's disks.
    ///
    /// # Errors
    /// When the agent does not answer within `timeout`.
    pub fn sync(&mut self, timeout: Duration) -> Result<(), Error> {
        self.channel.ask(&json!({ "op": "sync" }), timeout).map(drop)
    }

    /// Freezes file systems, all that are writable if none is named: what was written is on the disk, and whoever writes waits.
    /// The guest thaws them by itself soon after `timeout` is over.
    ///
    /// # Errors
    /// When the agent refuses or does not answer. Nothing stays frozen then.
    pub fn freeze(mut self, paths: &[&str], timeout: Duration) -> Result<Frozen, Error> {
        // Before the guest hears of it, and by the host's clock: Linux lets whoever sets the guest's have it faster by 11%.
        let until = Instant::now() + timeout;
        let told = timeout + timeout / 8;
        let mut request = json!({ "op": "freeze", "timeout_ms": told.as_millis() as u64 });
        if !paths.is_empty() {
            request["paths"] = paths.into();
        }
        let answer = self.channel.ask(&request, timeout)?;
        let paths =
            channel::texts(&answer["frozen"]).ok_or(Error::Garbled("it does not say what is frozen"))?;
        let skipped = channel::reasons(&answer["skipped"]);
        Ok(Frozen { channel: self.channel, limit: timeout, until, paths, skipped })
    }

    /// Has the guest switch itself off, or restart.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn shutdown(mut self, restart: bool) -> Result<(), Error> {
        let how = if restart { "reboot" } else { "poweroff" };
        self.channel.ask(&json!({ "op": "shutdown", "how": how }), PATIENCE).map(drop)
    }
}

/// File systems of the guest that hold still. They are thawed when this value is dropped: the agent sees the end of
/// the connection.
#[derive(Debug)]
pub struct Frozen {
    channel: Channel,
    limit: Duration,
    /// They hold still until then at least.
    until: Instant,
    /// Where they are mounted.
    pub paths: Vec<String>,
    /// Which could not be frozen, and why.
    pub skipped: Vec<(String, String)>,
}

impl Frozen {
    /// That they hold still yet. Does not wait for the guest: it is known from the time, and from the connection, which ends with
    /// the agent and when the guest restarts.
    ///
    /// # Errors
    /// [`Error::Thawed`] or [`Error::Lost`] tell why they may not.
    pub fn check(&self) -> Result<(), Error> {
        if Instant::now() >= self.until {
            return Err(Error::Thawed { seconds: self.limit.as_secs() });
        }
        self.channel.check_quiet()
    }

    /// The time that they hold still for is over now.
    #[cfg(test)]
    pub fn expire(&mut self) {
        self.until = Instant::now();
    }

    /// Thaws them; says which.
    ///
    /// # Errors
    /// When the agent does not answer, or the time was over and all was thawed before.
    pub fn thaw(mut self) -> Result<Vec<String>, Error> {
        let answer = self.channel.ask(&json!({ "op": "thaw" }), PATIENCE)?;
        channel::texts(&answer["thawed"]).ok_or(Error::Garbled("it does not say what is thawed"))
    }
}

/// The `ok` of an answer, or why it is none.
fn accepted(mut answer: Value) -> Result<Value, Error> {
    if let Some(message) = answer["error"].as_str() {
        let errno = answer["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok());
        return Err(Error::Refused { message: channel::plain(message), errno });
    }
    match answer["ok"].take() {
        ok @ Value::Object(_) => Ok(ok),
        _ => Err(Error::Garbled("its answer is neither yes nor no")),
    }
}
