//! File systems of the guest that hold still while the machine is saved: its agent freezes them.
//!
//! ```text
//!   request ─► thread: agent freezes ─► message ─► stop, capture, run on ─► connection ends: the agent thaws
//! ```
//!
//! The monitor never waits for the guest. Whatever fails, the connection ends, and with it the agent thaws; if it is not heard
//! of again, after [`LIMIT`].

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::machine::lock;
use super::message::{Message, Outbox};
use super::request::{Error, Freeze, Request, Response, RunState, Save};
use super::{Vmm, capture, chain};
use crate::agent::{self, Client, Frozen};
use crate::devices::virtio::vsock;
use crate::memory::Memory;
use crate::snapshot::Persist;

/// How long the guest's file systems hold still at most.
const LIMIT: Duration = Duration::from_secs(10);

/// File systems that hold still, or why they do not.
pub(super) type Held = Result<Frozen, agent::Error>;

impl Vmm {
    /// Whether the guest's file systems are to hold still first.
    pub(super) fn freezes(&self, request: &Request) -> bool {
        match request {
            Request::Save(Save { freeze: Freeze::Must, .. }) => true,
            Request::Save(Save { freeze: Freeze::IfPossible, .. })
            | Request::SaveDisk { freeze: true, .. } => {
                let is_driven = |saved| vsock::is_driven(&saved);
                let mut functions = self.machine.functions.iter().map(|function| lock(function).save());
                self.state == RunState::Running && functions.any(is_driven)
            }
            _ => false,
        }
    }

    /// Does what a request to save asks; `frozen` are the guest's file systems, or why they do not hold still.
    pub(super) fn write(&mut self, request: Request, frozen: Option<Held>, answer: Sender<Response>) {
        match (request, frozen) {
            (Request::SaveDisk { target, .. }, frozen) => self.save_disk(target, frozen, answer),
            (Request::Save(Save { freeze: Freeze::Must, .. }), Some(Err(error))) => {
                let _ = answer.send(Err(Error::Freeze(chain(&error))));
            }
            (Request::Save(save), frozen) => self.save(save, frozen, answer),
            _ => {}
        }
    }
}

/// Lets file systems go on; which they were, or why they did not hold still.
pub(super) fn thaw(frozen: Option<Held>) -> Option<Result<Vec<String>, agent::Error>> {
    frozen.map(|frozen| frozen.map(|frozen| frozen.paths.clone()))
}

/// Says in an answer what [`thaw`] returned.
pub(super) fn tell(answer: &mut Value, thawed: Option<Result<Vec<String>, agent::Error>>) {
    match thawed {
        Some(Ok(paths)) => answer["frozen"] = paths.into(),
        // Who has no agent wants none.
        None | Some(Err(agent::Error::NoAgent)) => {}
        Some(Err(error)) => answer["not_frozen"] = chain(&error).into(),
    }
}

/// Has file systems frozen, then goes on with saving the machine with this memory.
pub(super) fn freeze(
    request: Request,
    socket: Option<PathBuf>,
    memory: Arc<Memory>,
    outbox: Outbox,
    answer: Sender<Response>,
) {
    let work = move || {
        // Before all that waits for file systems has to wait for this as well.
        if let Request::Save(save) = &request {
            capture::prepare(save, &memory);
        }
        let frozen = match socket {
            Some(socket) => {
                Client::connect(&socket, agent::PATIENCE).and_then(|client| client.freeze(&[], LIMIT))
            }
            None => Err(agent::Error::NoChannel(ErrorKind::NotFound.into())),
        };
        outbox.send(Message::Frozen(request, frozen, answer));
    };
    // The sender that a thread could not take is gone, and whoever waits hears that.
    if let Err(error) = thread::Builder::new().name("freeze".into()).spawn(work) {
        log::error!("cannot start the thread that freezes file systems: {error}");
    }
}
