//! Saving a whole machine while it runs, and giving a machine what was saved.
//!
//! ```text
//!  run ──► stop vCPUs ─ hold devices still ─ read state ─ fork ──► run on
//!                                                          └─► writer thread: memory, state ─► bundle ─► answer
//!          └────────────────── pause ────────────────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::machine::{Machine, lock};
use super::message::{Message, Outbox};
use super::request::{Request, Response, Save};
use super::{Error, Lost, request};
use crate::arch::x86_64::cpuid;
use crate::config::VmConfig;
use crate::devices::virtio::block::Source;
use crate::devices::virtio::vsock;
use crate::disk::{Contents, Format};
use crate::kvm;
use crate::kvm::state::{VcpuState, VmState};
use crate::memory::Memory;
use crate::memory::image::{self, Chain, Lazy, Mode, Origin, Source as Pages};
use crate::snapshot::bundle::{self, Bundle, Draft};
use crate::snapshot::{Persist, Saved};
use crate::sys::frozen::Frozen;
use crate::sys::host;

/// File of the machine's state in a bundle.
const STATE: &str = "state.json";
/// File of the configuration.
const CONFIG: &str = "config.json";

/// The state of a machine, without its memory and its disks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Wall-clock time of the host, nanoseconds since 1970.
    time: u64,
    /// This start of the host: whoever has the same need not ask what its KVM supports.
    host: String,
    vm: VmState,
    vcpus: Vec<VcpuState>,
    serial: Saved,
    ged: Saved,
    virtio: Vec<Saved>,
}

/// Why a saved machine was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// Its memory.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A file in it has the wrong form.
    #[error("{file} of {path} is damaged")]
    Form {
        /// The file.
        file: &'static str,
        /// The bundle.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// It does not fit the machine that its own configuration describes.
    #[error("The snapshot has {found} {what}, its configuration {wanted}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many the state has.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// The guest counts on what this host has not.
    #[error("The machine was saved on another host: this one lacks {missing}")]
    Cpu {
        /// Names of what is missing.
        missing: String,
    },
    /// The state of one device.
    #[error(transparent)]
    Device(#[from] crate::snapshot::Error),
}

/// A saved machine, opened and checked.
pub struct Restore {
    config: VmConfig,
    state: State,
    memory: Chain,
    mode: Mode,
}

impl Restore {
    /// Opens the bundle at `path`, for a machine that has its memory copy-on-write from it.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Restore::open_in(path, Mode::default())
    }

    /// Opens the bundle at `path`, for a machine that gets its memory in this way.
    pub fn open_in(path: &Path, mode: Mode) -> Result<Self, LoadError> {
        let bundle = Bundle::open(path)?;
        let form = |file| move |source| LoadError::Form { file, path: path.into(), source };
        let mut config: VmConfig = serde_json::from_slice(&bundle.read(CONFIG)?).map_err(form(CONFIG))?;
        for (index, drive) in config.devices.block.iter_mut().enumerate() {
            let found = bundle.disk(&drive.name(index));
            if let Some((Some((disk, base)), above)) =
                found.as_ref().map(|(base, above)| (base.split_first(), above))
            {
                drive.path_on_host = disk.clone();
                (drive.base, drive.layers) = (base.to_vec(), above.clone());
                drive.keep_overlay &= drive.base.is_empty();
                drive.format = Some(Format::Raw);
                (drive.source, drive.backing) = (Source::Snapshot, None);
                // What the machine writes is never seen, on the file system where it can become a layer by a link.
                drive.overlay = Some(path.into());
            }
        }
        let state = serde_json::from_slice(&bundle.read(STATE)?).map_err(form(STATE))?;
        let images = bundle.memory()?;
        let memory = match &mode {
            Mode::Lazy(Some(_)) => Chain::open_indices(&images)?,
            _ => Chain::open(&images)?,
        };
        Ok(Restore { config, state, memory, mode })
    }

    /// How the machine gets its memory.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Begins to fill a machine's memory, if it is filled while the machine runs.
    pub(super) fn fill(
        &self,
        memory: &Arc<Memory>,
        outbox: &Outbox,
        lost: Option<Lost>,
    ) -> Result<Option<Lazy>, LoadError> {
        let Mode::Lazy(from) = &self.mode else { return Ok(None) };
        let source = from.as_deref().map_or(Ok(Pages::Files), Pages::connect)?;
        let outbox = outbox.clone();
        let failed = move |error: &image::Error| {
            let reason = super::chain(error);
            if let Some(lost) = lost {
                lost(&reason);
            }
            outbox.send(Message::Failed(reason));
        };
        Ok(Some(Lazy::start(&self.memory, source, memory, failed)?))
    }

    /// The configuration of the machine that was saved.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Whether programs in the guest can be reached: its driver uses the vsock device.
    pub fn has_channel(&self) -> bool {
        self.state.virtio.iter().any(vsock::is_driven)
    }

    /// The memory.
    pub fn memory(&self) -> &Chain {
        &self.memory
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

impl Machine {
    /// Reads the state of all but memory and disks. Everything stands still.
    fn save(&self) -> Result<State, Error> {
        let powered = self.powered()?;
        let msrs = kvm::state::msr_indices(&self.kvm)?;
        Ok(State {
            time: now(),
            host: host::start(),
            vm: powered.vm.save()?,
            vcpus: powered.vcpus.each().map(|vcpu| vcpu.save(&msrs)).collect::<Result<_, _>>()?,
            serial: self.platform.serial.as_ref().save(),
            ged: self.platform.ged.as_ref().save(),
            virtio: self.functions.iter().map(|function| lock(function).save()).collect(),
        })
    }

    /// Freezes the disks, by name.
    fn freeze_contents(&self) -> Result<Vec<(String, Contents)>, Error> {
        let mut disks = Vec::new();
        for function in &self.functions {
            disks.extend(lock(function).freeze_contents()?);
        }
        Ok(disks)
    }

    /// Gives a machine that was switched on without a kernel its saved state. Its clocks go on at the time it is now.
    pub(super) fn load(&self, restore: &Restore) -> Result<(), Error> {
        let state = &restore.state;
        let powered = self.powered()?;
        let count = |what, found, wanted| match found == wanted {
            true => Ok(()),
            false => Err(LoadError::Count { what, found, wanted }),
        };
        count("vCPUs", state.vcpus.len(), self.config.vcpu_count as usize)?;
        count("virtio devices", state.virtio.len(), self.functions.len())?;
        // Asking takes longer than all the rest.
        if state.host != host::start() || state.host.is_empty() {
            let supported = kvm::supported_cpuid(&self.kvm)?;
            let missing = state.vcpus.iter().map(|vcpu| cpuid::missing(vcpu.cpuid(), &supported));
            if let Some(missing) = missing.max_by_key(Vec::len).filter(|missing| !missing.is_empty()) {
                return Err(LoadError::Cpu { missing: missing.join(", ") }.into());
            }
        }
        let ahead = now().saturating_sub(state.time);
        powered.vm.load(&state.vm, ahead)?;
        for (mut vcpu, state) in powered.vcpus.each().zip(&state.vcpus) {
            let cycles = u128::from(ahead) * u128::from(state.tsc_khz()) / 1_000_000;
            vcpu.load(state, cycles as u64)?;
        }
        // Devices last: what they still owe the guest is an edge that goes through the chips as they are now.
        self.platform.serial.as_ref().load(&state.serial).map_err(LoadError::Device)?;
        self.platform.ged.as_ref().load(&state.ged).map_err(LoadError::Device)?;
        for (function, saved) in self.functions.iter().zip(&state.virtio) {
            lock(function).load(saved).map_err(LoadError::Device)?;
        }
        self.new_generation();
        Ok(())
    }
}

/// Where a capture goes: made before the machine is stopped, so that what cannot be written disturbs nobody.
pub(super) struct Plan {
    draft: Draft,
    /// The base with its memory.
    base: Option<(PathBuf, Chain)>,
    /// End the machine when the bundle is written.
    pub stop: bool,
    /// The machine stands still until then, and goes on if the bundle cannot be written.
    pub resume_if_not_written: bool,
}

impl Plan {
    /// Makes room for a bundle and opens its base.
    pub fn new(save: Save, memory: &Memory) -> Result<Self, LoadError> {
        let draft = Draft::new(&save.target)?;
        let open = |path: PathBuf| {
            let bundle = Bundle::open(&path)?;
            let plain = path.canonicalize();
            let plain = plain.map_err(|source| bundle::Error::File { doing: "find", path, source })?;
            let chain = Chain::open(&bundle.memory()?)?;
            chain.check_size(memory.iter().map(|region| region.len()).sum())?;
            Ok::<_, LoadError>((plain, chain))
        };
        let base = save.base.map(open).transpose()?;
        Ok(Plan { draft, base, stop: save.stop, resume_if_not_written: false })
    }
}

/// A capture that has been taken and is still to be written.
pub(super) struct Capture {
    frozen: Frozen,
    disks: Vec<(String, Contents)>,
    memory: Arc<Memory>,
    origin: Origin,
    state: State,
    config: VmConfig,
    pause: Duration,
}

impl Capture {
    /// Takes the state of a machine whose vCPUs stand still since `paused`. Devices move again when it returns.
    pub fn take(machine: &Machine, config: &VmConfig, paused: Instant) -> Result<Self, Error> {
        machine.functions.iter().for_each(|function| lock(function).freeze());
        let taken = machine.save().and_then(|state| Ok((state, machine.freeze_contents()?, Frozen::fork()?)));
        machine.retry();
        let (state, disks, frozen) = taken?;
        Ok(Capture {
            frozen,
            disks,
            memory: Arc::clone(&machine.memory),
            origin: machine.origin.clone(),
            state,
            config: config.clone(),
            pause: paused.elapsed(),
        })
    }

    /// Writes the bundle on a thread of its own, then answers; a machine that is to stop is stopped then.
    /// `frozen` are the guest's file systems that held still.
    pub fn write(self, plan: Plan, frozen: Option<Vec<String>>, outbox: Outbox, answer: Sender<Response>) {
        let work = move || {
            let (stop, resume) = (plan.stop, plan.resume_if_not_written);
            let mut result = self.bundle(plan);
            if let (Ok(report), Some(frozen)) = (&mut result, frozen) {
                report["frozen"] = frozen.into();
            }
            let written = result.is_ok();
            let _ = answer.send(result.map_err(|error| request::Error::Save(super::chain(error.as_ref()))));
            if stop && written {
                outbox.send(Message::Terminate { force: true });
            } else if resume && let Err(error) = outbox.request(Request::Resume) {
                log::warn!("the machine stays paused: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("snapshot".into()).spawn(work) {
            log::error!("cannot start the thread that writes a snapshot: {error}");
        }
    }

    fn bundle(self, plan: Plan) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
        let start = Instant::now();
        let Plan { mut draft, base, .. } = plan;
        let mut config = self.config;
        config.make_absolute();
        draft.add(CONFIG, &serde_json::to_vec_pretty(&config)?)?;
        draft.add(STATE, &serde_json::to_vec(&self.state)?)?;
        let written = image::write(
            &self.frozen,
            &self.memory,
            &self.origin,
            base.as_ref().map(|(_, chain)| chain),
            draft.path(),
            &mut |_, _| {},
        )?;
        drop(self.frozen);
        let mut disks = Vec::with_capacity(self.disks.len());
        for (index, (id, contents)) in self.disks.into_iter().enumerate() {
            let base = contents.base();
            disks.push(bundle::Disk { id, layers: contents.store(draft.path(), index)?, base });
        }
        let parent = match &base {
            Some((base, _)) => {
                // The draft stands beside its target, so the way from one is the way from the other.
                let from = draft.path().canonicalize()?;
                Some(bundle::relative(&from, base))
            }
            None => None,
        };
        let target = draft.target().to_path_buf();
        draft.publish(parent, disks)?;
        Ok(json!({
            "path": target,
            "pause_us": self.pause.as_micros() as u64,
            "write_us": start.elapsed().as_micros() as u64,
            "ram_bytes": written.ram,
            "data_bytes": written.data,
            "zero_bytes": written.zero,
        }))
    }
}
