//! The end of a machine that runs: it tells how on a connection that waits for it, and it is gone when all that it held is free.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::machines::{self, Error, PATIENCE};
use crate::api::client::{self, Client};
use crate::api::runtime::Machine;

/// How often a machine is looked at.
const AGAIN: Duration = Duration::from_millis(5);

/// A connection on which a machine tells how it ends.
pub struct End(Result<Client, client::Error>);

impl End {
    /// Asks for it, before anything is done that ends the machine.
    pub fn watch(machine: &Machine) -> Self {
        let connected = machines::patiently(machine, || Client::connect(&machine.socket, PATIENCE));
        End(connected.and_then(|mut client| {
            client.send("GET", "/vm/end", None)?;
            Ok(client)
        }))
    }

    /// What it tells within `time`, as `--json` does.
    ///
    /// # Errors
    /// When the machine could not be asked, or does not answer.
    pub fn told(self, time: Duration) -> Result<Value, client::Error> {
        let mut client = self.0?;
        client.allow(time);
        client.receive()
    }
}

/// Waits until the machine is gone: its name can be taken again, and what is known of its end is written.
///
/// # Errors
/// [`Error::StillThere`] when it is not after `time`.
pub fn gone(machine: &Machine, time: Duration) -> Result<(), Error> {
    let start = Instant::now();
    while !machine.is_gone() {
        if start.elapsed() > time {
            return Err(Error::StillThere { seconds: time.as_secs() });
        }
        thread::sleep(AGAIN);
    }
    Ok(())
}
