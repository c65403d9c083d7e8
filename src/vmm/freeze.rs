//! File systems of the guest that hold still while the machine is saved: its agent freezes them.
//!
//! ```text
//!   request ─► thread: agent freezes ─► message ─► stop, still frozen?, capture, run on ─► thread: agent thaws ─► the next one's turn
//! ```
//!
//! The monitor never waits for the guest. Whatever fails, the connection ends, and with it the agent thaws; if it is not heard
//! of again, after [`LIMIT`]. The guest freezes nothing twice: of several that want it, each has the file systems to itself.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::message::{Message, Outbox};
use super::request::{Error, Freeze, Request, Response, RunState, Save};
use super::{Vmm, capture, chain};
use crate::agent::{self, Client, Frozen};
use crate::devices::virtio::vsock;
use crate::memory::image::Lazy;
use crate::snapshot::Persist;
use crate::sys::lock;

/// How long the guest's file systems hold still at most.
const LIMIT: Duration = Duration::from_secs(10);

/// Which file systems held still when the machine was captured, or why they did not; `None` if nobody wanted them to.
pub(super) type Told = Option<Result<Vec<String>, String>>;

/// The guest's file systems for one capture. When it is dropped they go on, and then it is another's turn.
pub struct Held {
    /// They hold still, or why they do not; `None` before it is known.
    frozen: Option<Result<Frozen, agent::Error>>,
    outbox: Outbox,
}

impl Held {
    /// Nothing is frozen yet.
    pub(super) fn new(outbox: Outbox) -> Self {
        Held { frozen: None, outbox }
    }

    /// The same with what became of it.
    pub(super) fn with(mut self, frozen: Result<Frozen, agent::Error>) -> Self {
        self.frozen = Some(frozen);
        self
    }

    /// Why none is frozen.
    fn refusal(&self) -> Option<String> {
        match self.frozen.as_ref()? {
            Ok(Frozen { paths, skipped, .. }) => paths.is_empty().then(|| {
                let of = skipped.iter().find(|(path, _)| path == "/").or(skipped.first());
                of.map_or("none can be".into(), |(path, reason)| {
                    format!("none can be, {path} for one: {reason}")
                })
            }),
            Err(error) => Some(chain(error)),
        }
    }

    /// Which hold still now, or why they do not. If the vCPUs are stopped, that is so until they run again.
    fn told(&self) -> Told {
        let tell =
            |frozen: &Frozen| frozen.check().map(|()| frozen.paths.clone()).map_err(|error| chain(&error));
        match self.frozen.as_ref()? {
            Ok(frozen) => Some(tell(frozen)),
            // Who has no agent wants none.
            Err(agent::Error::NoAgent) => None,
            Err(error) => Some(Err(chain(error))),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(Ok(frozen)) = self.frozen.take() else { return self.outbox.send(Message::Thawed) };
        let outbox = self.outbox.clone();
        let work = move || {
            // Until the guest has done it, it would refuse to freeze them for another. Without an answer it hears the connection end.
            let _ = frozen.thaw();
            outbox.send(Message::Thawed);
        };
        if let Err(error) = thread::Builder::new().name("thaw".into()).spawn(work) {
            log::error!("cannot start the thread that waits until file systems are thawed: {error}");
            self.outbox.send(Message::Thawed);
        }
    }
}

/// Which of `held` hold still now; see [`Told`].
pub(super) fn told(held: &Option<Held>) -> Told {
    held.as_ref()?.told()
}

/// Says in an answer what [`told`] returned.
pub(super) fn tell(answer: &mut Value, told: Told) {
    match told {
        Some(Ok(paths)) => answer["frozen"] = paths.into(),
        Some(Err(reason)) => answer["not_frozen"] = reason.into(),
        None => {}
    }
}

/// One after the other has the guest's file systems frozen.
#[derive(Default)]
pub(super) struct Turns {
    taken: bool,
    waiting: VecDeque<(Request, Sender<Response>)>,
}

impl Vmm {
    /// Begins with a request to save.
    pub(super) fn begin(&mut self, request: Request, answer: Sender<Response>) {
        if let Err(error) = request.check(self.state) {
            let _ = answer.send(Err(error));
            return;
        }
        // What is not there yet cannot be saved: the request comes again when it is, and only then file systems need hold still.
        if let (Request::Save(_), Some(filled)) =
            (&request, self.machine.lazy.as_ref().and_then(Lazy::under_way))
        {
            let outbox = self.outbox();
            return on_a_thread("save-later", answer, move |answer| {
                filled.wait();
                outbox.send(Message::Request(request, answer));
            });
        }
        if !self.freezes(&request) {
            self.write(request, None, answer);
        } else if self.turns.taken {
            self.turns.waiting.push_back((request, answer));
        } else {
            self.turns.taken = true;
            self.freeze(request, answer);
        }
    }

    /// The guest's file systems go on: others can have them frozen.
    pub(super) fn thawed(&mut self) {
        self.turns.taken = false;
        while !self.turns.taken
            && let Some((request, answer)) = self.turns.waiting.pop_front()
        {
            self.begin(request, answer);
        }
    }

    /// Whether the guest's file systems are to hold still first.
    fn freezes(&self, request: &Request) -> bool {
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

    /// Has file systems frozen; the machine is saved when the message comes that they are.
    fn freeze(&self, request: Request, answer: Sender<Response>) {
        let (socket, memory) = (self.agent.clone(), Arc::clone(&self.machine.memory));
        let (held, outbox) = (Held::new(self.outbox()), self.outbox());
        on_a_thread("freeze", answer, move |answer| {
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
            outbox.send(Message::Frozen(request, held.with(frozen), answer));
        });
    }

    /// Does what a request to save asks; `held` are the guest's file systems.
    pub(super) fn write(&mut self, request: Request, held: Option<Held>, answer: Sender<Response>) {
        if let (Request::Save(Save { freeze: Freeze::Must, .. }), Some(reason)) =
            (&request, held.as_ref().and_then(Held::refusal))
        {
            let _ = answer.send(Err(Error::Freeze(reason)));
            return;
        }
        // Whoever had to wait for file systems may find a machine that stands still until it is saved: none of its disks is to move.
        let refusal = request.check(self.state).err();
        match (request, held) {
            (Request::SaveDisk { target, .. }, held) => match refusal {
                Some(error) => drop(answer.send(Err(error))),
                None => self.save_disk(target, held, answer),
            },
            (Request::Save(save), held) => self.save(save, held, answer),
            _ => {}
        }
    }
}

/// Does something on a thread, for whoever waits for an answer.
fn on_a_thread(name: &str, answer: Sender<Response>, work: impl FnOnce(Sender<Response>) + Send + 'static) {
    // The sender that a thread could not take is gone, and whoever waits hears that.
    if let Err(error) = thread::Builder::new().name(name.into()).spawn(move || work(answer)) {
        log::error!("cannot start the thread `{name}` of a request to save: {error}");
    }
}
