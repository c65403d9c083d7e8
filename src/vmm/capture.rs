//! Saving a whole machine while it runs.
//!
//! ```text
//!  writer thread   make room, open the base,
//!                  make huge pages again ────┐                              ┌─► memory, state ─► bundle ─► answer
//!  event loop                                └─► stop vCPUs ─ hold devices  │
//!                                                still ─ read state ─ fork ─┴─► run on
//!                                                └────────── pause ─────────┘
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::freeze::{self, Held, Told};
use super::machine::Machine;
use super::message::{Message, Outbox};
use super::request::{self, Freeze, Request, Response, RunState, Save};
use super::snapshot::{CONFIG, LoadError, NOTE, STATE, State, settled};
use super::{Error, Vmm};
use crate::config::{HugePages, VmConfig};
use crate::disk::Contents;
use crate::memory::image::{self, Chain, INDEX_FILE, Origin};
use crate::memory::{Memory, join_small_pages};
use crate::snapshot::bundle::{self, Bundle, Draft};
use crate::sys::frozen::Frozen;
use crate::sys::lock;

/// Where a capture goes: made before the machine is stopped, so that what cannot be written disturbs nobody.
struct Plan {
    draft: Draft,
    /// The base with its memory.
    base: Option<(Bundle, Chain)>,
}

impl Plan {
    /// Makes room for a bundle and opens its base, for a machine with so many bytes of RAM.
    fn new(save: &Save, ram: u64) -> Result<Self, LoadError> {
        let draft = Draft::new(&save.target)?;
        let open = |path: &PathBuf| {
            let plain = path.canonicalize();
            let plain =
                plain.map_err(|source| bundle::Error::File { doing: "open", path: path.clone(), source })?;
            let bundle = Bundle::open(&plain)?;
            let memory = bundle.memory(&[], true)?;
            memory.check_size(ram)?;
            Ok::<_, LoadError>((bundle, memory))
        };
        let base = save.base.as_ref().map(|path| settled(|| open(path))).transpose()?;
        Ok(Plan { draft, base })
    }
}

/// What a machine had in it at one moment, to be written while it runs on.
pub struct Capture {
    frozen: Frozen,
    disks: Vec<(String, Contents)>,
    memory: Arc<Memory>,
    origin: Origin,
    state: State,
    config: VmConfig,
    /// See [`NOTE`].
    note: Option<Vec<u8>>,
    pause: Pause,
    /// Of the guest's file systems.
    told: Told,
    /// The machine stands still until it is written.
    holds: bool,
}

/// What a machine stands still for, in order.
struct Pause {
    start: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Pause {
    /// The part that ends now.
    fn ends(&mut self, part: &'static str) {
        let before = self.parts.iter().map(|(_, time)| *time).sum();
        self.parts.push((part, self.start.elapsed().saturating_sub(before)));
    }

    /// Microseconds of all parts together.
    fn total(&self) -> u64 {
        self.parts.iter().map(|(_, time)| *time).sum::<Duration>().as_micros() as u64
    }

    /// Microseconds of each part.
    fn parts(&self) -> Value {
        let part = |(part, time): &(&str, Duration)| (part.to_string(), json!(time.as_micros() as u64));
        Value::Object(self.parts.iter().map(part).collect())
    }
}

impl Capture {
    /// Takes the state of a machine whose vCPUs stand still as `pause` tells. Devices move again when it returns, unless all is to
    /// stand still until it is written.
    fn take(
        machine: &Machine,
        config: &VmConfig,
        note: Option<Vec<u8>>,
        mut pause: Pause,
        told: Told,
        holds: bool,
    ) -> Result<Self, Error> {
        machine.functions.iter().for_each(|function| lock(function).freeze());
        pause.ends("stop");
        let mut take = || {
            let state = machine.save()?;
            pause.ends("state");
            let disks = machine.freeze_contents()?;
            pause.ends("disks");
            let frozen = Frozen::fork().map_err(Error::Fork)?;
            pause.ends("fork");
            Ok::<_, Error>((state, disks, frozen))
        };
        let taken = take();
        if !holds || taken.is_err() {
            machine.retry();
        }
        let (state, disks, frozen) = taken?;
        Ok(Capture {
            frozen,
            disks,
            memory: Arc::clone(&machine.memory),
            origin: machine.origin.clone(),
            state,
            config: config.clone(),
            note,
            pause,
            told,
            holds,
        })
    }

    fn write(self, plan: Plan) -> Result<Value, Box<dyn std::error::Error>> {
        let start = Instant::now();
        let Plan { mut draft, base } = plan;
        let mut config = self.config;
        config.make_absolute();
        draft.add(CONFIG, &serde_json::to_vec_pretty(&config)?)?;
        draft.add(STATE, &serde_json::to_vec(&self.state)?)?;
        if let Some(note) = &self.note {
            draft.add(NOTE, note)?;
        }
        let (parent, chain) = base.unzip();
        let written = image::write(
            &self.frozen,
            &self.memory,
            &self.origin,
            chain.as_ref(),
            draft.path(),
            &mut |_, _| {},
        )?;
        drop(self.frozen);
        draft.add(INDEX_FILE, &written.index)?;
        let mut disks = Vec::with_capacity(self.disks.len());
        let mut next = None;
        for (index, (id, contents)) in self.disks.into_iter().enumerate() {
            let base = contents.base();
            next = next.or(contents.next());
            let earlier = parent.as_ref().map_or_else(Vec::new, |parent| parent.layers_of(&id));
            let stored = contents.store(draft.path(), draft.target(), index, &earlier)?;
            let (layers, digests) = stored.into_iter().map(|(layer, digest)| (layer, Some(digest))).unzip();
            disks.push(bundle::Disk { id, layers, base, digests });
        }
        // The draft stands beside its target, so the way from one is the way from the other.
        let from = draft.path().canonicalize()?;
        let target = draft.target().to_path_buf();
        draft.publish(parent.map(|parent| parent.as_parent_of(&from)), disks)?;
        let mut report = json!({
            "path": target,
            "pause_us": self.pause.total(),
            "pause_parts_us": self.pause.parts(),
            "write_us": start.elapsed().as_micros() as u64,
            "ram_bytes": written.ram,
            "data_bytes": written.data,
            "zero_bytes": written.zero,
            "next_overlay": next,
        });
        freeze::tell(&mut report, self.told);
        Ok(report)
    }
}

impl Vmm {
    /// Begins a snapshot; the answer is sent when it has been written. The guest's file systems are thawed when it has been taken.
    pub(super) fn save(&mut self, save: Save, held: Option<Held>, answer: Sender<Response>) {
        let (memory, outbox) = (Arc::clone(&self.machine.memory), self.outbox());
        self.writers.start("snapshot", answer, move || write(&save, &memory, held, &outbox));
    }

    /// Captures what is in the machine, which runs on unless it is to end, or is on reserved huge pages: when it writes to one that
    /// is shared with the copy and the host has none left, the kernel takes it from the copy. If the guest has just ended or restarted
    /// the machine, that comes first: what is to follow is in no state that is saved.
    pub(super) fn capture(
        &mut self,
        save: Save,
        held: Option<Held>,
        writer: Sender<Result<Capture, request::Error>>,
    ) {
        let holds = save.stop || self.config.machine_config.huge_pages == HugePages::Size2M;
        // Its file systems are frozen already, if they are to be.
        if let Err(error) = Request::Save(Save { freeze: Freeze::No, ..save.clone() }).check(self.state) {
            let _ = writer.send(Err(error));
            return;
        }
        // Before the disks are frozen, and on the thread that puts them on another base: what is noted of overlays is of those that
        // are captured.
        let note = self.directory.as_ref().and_then(|directory| std::fs::read(directory.join(NOTE)).ok());
        let pause = Pause { start: Instant::now(), parts: Vec::new() };
        self.machine.pause();
        let ends = self.inbox.has_end();
        let capture = match freeze::told(&held) {
            _ if ends => None,
            // They have not held still for long enough.
            Some(Err(reason)) if save.freeze == Freeze::Must => Some(Err(request::Error::Freeze(reason))),
            told => {
                let taken = Capture::take(&self.machine, &self.config, note, pause, told, holds);
                Some(taken.map_err(|error| request::Error::save(&error)))
            }
        };
        if holds && capture.as_ref().is_some_and(Result::is_ok) {
            self.stand_still();
        } else if self.state == RunState::Running {
            self.machine.resume();
        }
        match capture {
            Some(capture) => drop(writer.send(capture)),
            None => self.outbox().send(Message::Capture(save, held, writer)),
        }
    }
}

/// Bytes of RAM.
fn ram(memory: &Memory) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

/// Makes the pause of a machine that is to run on shorter: a fork copies one entry for a huge page, 512 for small ones.
pub(super) fn prepare(save: &Save, memory: &Memory) {
    if !save.stop
        && let Err(error) = join_small_pages(memory)
    {
        log::debug!("the machine is to stand still for longer, with small pages: {error}");
    }
}

/// Saves a machine with this memory. `held` are the guest's file systems, which are thawed when the capture is taken.
fn write(save: &Save, memory: &Memory, held: Option<Held>, outbox: &Outbox) -> Response {
    let plan = Plan::new(save, ram(memory)).map_err(|error| request::Error::save(&error))?;
    if held.is_none() {
        prepare(save, memory);
    }
    let start = Instant::now();
    let (sender, captured) = mpsc::channel();
    outbox.send(Message::Capture(save.clone(), held, sender));
    let captured = captured.recv().map_err(|_| request::Error::Ended)??;
    let holds = captured.holds;
    let mut report = captured.write(plan).map_err(|error| request::Error::save(error.as_ref()));
    if let (Ok(report), true) = (&mut report, holds && !save.stop) {
        report["pause_us"] = (start.elapsed().as_micros() as u64).into();
    }
    if holds {
        // First of all: whoever hears the answer finds a machine that goes on, or ends.
        outbox.send(Message::Written { end: save.stop && report.is_ok() });
    }
    report
}
