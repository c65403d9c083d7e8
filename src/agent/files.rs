//! Files between host and guest.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::channel::{self, Channel, Kind, LONGEST_PART};
use super::{Client, Error, PATIENCE, accepted};

/// How long the guest's disk may make one part of a file wait.
const STALL: Duration = Duration::from_secs(60);

/// A file of the guest that is about to come.
pub struct Download<'a> {
    channel: &'a mut Channel,
    /// Bytes that the guest says it has; it may have more or fewer in the end.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
}

impl Client {
    /// Asks for a file of the guest.
    ///
    /// # Errors
    /// When the guest has no such file or cannot read it.
    pub fn read(&mut self, path: &str) -> Result<Download<'_>, Error> {
        let answer = self.channel.ask(&json!({ "op": "read", "path": path }), PATIENCE)?;
        let size = answer["size"].as_u64().ok_or(Error::Garbled("it does not tell a file's size"))?;
        let mode = answer["mode"].as_u64().and_then(|mode| u32::try_from(mode).ok());
        let mode =
            mode.filter(|mode| *mode <= 0o7777).ok_or(Error::Garbled("it does not tell a file's mode"))?;
        Ok(Download { channel: &mut self.channel, size, mode })
    }

    /// Writes a file of the guest, which appears whole or not at all. Returns its size.
    ///
    /// # Errors
    /// When the guest cannot write it, or `from` cannot be read.
    pub fn write(&mut self, path: &str, mode: u32, from: &mut impl Read) -> Result<u64, Error> {
        self.channel.ask(&json!({ "op": "write", "path": path, "mode": mode & 0o7777 }), PATIENCE)?;
        self.channel.set_patience(Some(STALL))?;
        let (mut part, mut total) = (vec![0; LONGEST_PART], 0);
        loop {
            let count = match from.read(&mut part) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The connection ends with this value, and the guest forgets what it has.
                count => count.map_err(Error::Host)?,
            };
            self.channel.send(Kind::Data, &part[..count])?;
            total += count as u64;
            if count == 0 {
                break;
            }
        }
        accepted(self.channel.message(STALL)?)?;
        Ok(total)
    }
}

impl Download<'_> {
    /// Copies all of it; returns how much it was.
    ///
    /// # Errors
    /// When the guest cannot read on, or `to` takes no more.
    pub fn copy(self, to: &mut impl Write) -> Result<u64, Error> {
        let (mut payload, mut total) = (Vec::new(), 0);
        loop {
            match self.channel.receive(&mut payload, Some(Instant::now() + STALL))? {
                Kind::Data if payload.is_empty() => break,
                Kind::Data => to.write_all(&payload).map_err(Error::Host)?,
                _ => return Err(Error::Garbled("it sends something else than the file")),
            }
            total += payload.len() as u64;
        }
        to.flush().map_err(Error::Host)?;
        match self.channel.receive(&mut payload, Some(Instant::now() + STALL))? {
            Kind::Message => accepted(channel::parse(&payload)?).map(|_| total),
            _ => Err(Error::Garbled("it does not say how a copy ended")),
        }
    }
}
