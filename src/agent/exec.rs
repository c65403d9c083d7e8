//! Commands in the guest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::channel::{self, Channel, Kind, LONGEST_PART};
use super::{Client, Error, PATIENCE};
use crate::sys::lock;

/// After so long without progress a command does not take its input.
const STUCK: Duration = Duration::from_millis(500);

/// A command as it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to a plain environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs; the root directory if nothing is said.
    pub directory: Option<String>,
    /// Whom it runs as, `USER[:GROUP]`; root if nothing is said.
    pub user: Option<String>,
    /// It gets a terminal of this size; else pipes.
    pub terminal: Option<Size>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A command that runs. It gets SIGHUP if this value is dropped before its end.
#[derive(Debug)]
pub struct Running {
    channel: Channel,
    control: Control,
    payload: Vec<u8>,
}

/// What comes from a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of its output; none when it ends its output.
    Output(&'a [u8]),
    /// Bytes of its error output.
    ErrorOutput(&'a [u8]),
    /// Its end. Nothing follows.
    End(End),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a status.
    Status(u8),
    /// By a signal.
    Signal(u8),
}

impl End {
    /// The status by which a shell tells it.
    pub fn status(self) -> u8 {
        match self {
            End::Status(status) => status,
            End::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl Client {
    /// Starts a command.
    ///
    /// # Errors
    /// When the guest has no such program, user or directory.
    pub fn exec(mut self, command: &Command) -> Result<Running, Error> {
        let mut request = json!({ "op": "exec", "argv": command.argv, "env": command.env });
        if let Some(directory) = &command.directory {
            request["cwd"] = directory.as_str().into();
        }
        if let Some(user) = &command.user {
            request["user"] = user.as_str().into();
        }
        if let Some(size) = command.terminal {
            request["tty"] = true.into();
            (request["rows"], request["cols"]) = (size.rows.into(), size.columns.into());
        }
        self.channel.ask(&request, PATIENCE)?;
        // Input waits as long as the command does not read.
        self.channel.set_patience(None)?;
        let control = Control(Arc::new(Mutex::new(self.channel.try_clone()?)));
        Ok(Running { channel: self.channel, control, payload: Vec::new() })
    }
}

impl Running {
    /// Speaks to the command; for any thread.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits for what comes next, as long as it takes.
    ///
    /// # Errors
    /// When the connection is lost, for example because the machine ended.
    pub fn event(&mut self) -> Result<Event<'_>, Error> {
        match self.channel.receive(&mut self.payload, None)? {
            Kind::Output => Ok(Event::Output(&self.payload)),
            Kind::ErrorOutput => Ok(Event::ErrorOutput(&self.payload)),
            Kind::Message => end(&channel::parse(&self.payload)?).map(Event::End),
            _ => Err(Error::Garbled("it sends something else than output")),
        }
    }
}

fn end(message: &Value) -> Result<End, Error> {
    let number = |name: &str| message["exit"][name].as_u64().and_then(|number| u8::try_from(number).ok());
    let end = number("status").map(End::Status).or_else(|| number("signal").map(End::Signal));
    end.ok_or(Error::Garbled("it does not say how a command ended"))
}

/// The sending side of a command that runs.
#[derive(Clone, Debug)]
pub struct Control(Arc<Mutex<Channel>>);

impl Control {
    fn with(&self, act: impl FnOnce(&mut Channel) -> Result<(), Error>) -> Result<(), Error> {
        act(&mut lock(&self.0))
    }

    /// Gives it input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn input(&self, bytes: &[u8]) -> Result<(), Error> {
        bytes.chunks(LONGEST_PART).try_for_each(|part| self.with(|channel| channel.send(Kind::Input, part)))
    }

    /// Ends its input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn end_input(&self) -> Result<(), Error> {
        self.with(|channel| channel.send(Kind::Input, &[]))
    }

    /// Tells it the new size of its terminal. False if that cannot be sent, for the command does not take its input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn resize(&self, size: Size) -> Result<bool, Error> {
        self.say(&json!({ "op": "resize", "rows": size.rows, "cols": size.columns }))
    }

    /// Sends it a signal, with all of its process group. False if that cannot be sent, for the command does not take its input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn signal(&self, number: i32) -> Result<bool, Error> {
        self.say(&json!({ "op": "signal", "number": number }))
    }

    fn say(&self, message: &Value) -> Result<bool, Error> {
        let start = Instant::now();
        loop {
            match self.0.try_lock() {
                Ok(mut channel) => return channel.say(message).map(|()| true),
                Err(TryLockError::Poisoned(poisoned)) => {
                    return poisoned.into_inner().say(message).map(|()| true);
                }
                Err(TryLockError::WouldBlock) if start.elapsed() > STUCK => return Ok(false),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
