//! File systems of the guest that hold still while the machine is saved: its agent freezes them.
//!
//! ```text
//!   request ─► thread: agent freezes ─► message ─► stop, capture, run on ─► connection ends: the agent thaws
//! ```
//!
//! The monitor never waits for the guest. Whatever fails, the connection ends, and with it the agent thaws; if it is not heard
//! of again, after [`LIMIT`].

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::message::{Message, Outbox};
use super::request::{Error, Response, Save};
use crate::agent::{self, Client};

/// How long the guest's file systems hold still at most.
const LIMIT: Duration = Duration::from_secs(10);

/// Has file systems frozen, then goes on with saving the machine.
pub(super) fn freeze(save: Save, socket: Option<PathBuf>, outbox: Outbox, answer: Sender<Response>) {
    let work = move || {
        let Some(socket) = socket else {
            let _ = answer.send(Err(Error::Freeze("The machine has no channel to its guest".into())));
            return;
        };
        let frozen = Client::connect(&socket, agent::PATIENCE).and_then(|client| client.freeze(&[], LIMIT));
        match frozen {
            Ok(frozen) => outbox.send(Message::Frozen(save, frozen, answer)),
            Err(error) => drop(answer.send(Err(Error::Freeze(super::chain(&error))))),
        }
    };
    // The sender that a thread could not take is gone, and whoever waits hears that.
    if let Err(error) = thread::Builder::new().name("freeze".into()).spawn(work) {
        log::error!("cannot start the thread that freezes file systems: {error}");
    }
}
