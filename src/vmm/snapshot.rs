//! The state of a whole machine, and giving a machine what was saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::machine::Machine;
use super::message::{Message, Outbox};
use super::{Error, OnMemoryLost};
use crate::arch::x86_64::cpuid;
use crate::config::VmConfig;
use crate::devices::virtio::block::{self, Source};
use crate::devices::virtio::vsock;
use crate::disk::{self, Contents, Format, Opened};
use crate::kvm;
use crate::kvm::state::{VcpuState, VmState};
use crate::memory::image::{self, Chain, Lazy, Mode, Origin, Source as PagesFrom, WorkingSet};
use crate::memory::{Memory, Pages};
use crate::snapshot::bundle::{self, Bundle, DiskFiles};
use crate::snapshot::{Persist, Saved};
use crate::sys::directory::Directory;
use crate::sys::{host, lock};

/// File of the machine's state in a bundle.
pub(super) const STATE: &str = "state.json";
/// File of the configuration.
pub(super) const CONFIG: &str = "config.json";
/// File in a machine's own directory, and in a bundle, in which those who made the machine note what it stands on. The monitor
/// takes it along and reads nothing in it.
pub const NOTE: &str = "image.json";

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
    /// A disk of the configuration is not in the bundle.
    #[error(
        "The disk `{name}` of the machine is not in the snapshot: say with --disk which one it is to have"
    )]
    NoDisk {
        /// The disk.
        name: String,
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
    directory: Arc<Directory>,
    note: Option<Vec<u8>>,
    progress: Option<Progress>,
}

/// Told how many bytes of memory have been read of how many.
pub type Progress = Box<dyn Fn(u64, u64)>;

impl Restore {
    /// Opens the bundle at `path`, for a machine that has its memory copy-on-write from it.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Restore::open_on(path, Mode::default(), &[])
    }

    /// Opens the bundle at `path`, for a machine that gets its memory in this way. It may stand on the bundles at `bases`,
    /// which are not where they were.
    pub fn open_on(path: &Path, mode: Mode, bases: &[PathBuf]) -> Result<Self, LoadError> {
        settled(|| Restore::open_once(path, mode.clone(), bases))
    }

    fn open_once(path: &Path, mode: Mode, bases: &[PathBuf]) -> Result<Self, LoadError> {
        let bundle = Bundle::open(path)?;
        let bases = bases.iter().map(|base| Bundle::open(base)).collect::<Result<Vec<_>, _>>()?;
        let form = |file| move |source| LoadError::Form { file, path: path.into(), source };
        let mut config: VmConfig = serde_json::from_slice(&bundle.read(CONFIG)?).map_err(form(CONFIG))?;
        for (index, drive) in config.devices.block.iter_mut().enumerate() {
            let name = drive.name(index);
            let Some(DiskFiles { base, overlays }) = bundle.disk(&name) else { continue };
            let Some((disk, layers)) = base.split_first() else { continue };
            drive.path_on_host = disk.clone();
            (drive.base, drive.layers) = (layers.to_vec(), overlays);
            drive.keep_overlay &= drive.base.is_empty();
            drive.format = Some(Format::Raw);
            (drive.source, drive.backing) = (Source::Snapshot, None);
            drive.overlay = Some(block::scratch(path));
            drive.digests = bundle.digests(&name).to_vec();
            drive.opened = Opened(bundle.open_disk(&name)?);
        }
        // A file gives the same bytes again, and a snapshot of somebody else may name any.
        config
            .devices
            .rng
            .iter_mut()
            .filter(|rng| !rng.is_generator())
            .for_each(|rng| *rng = Default::default());
        let state = serde_json::from_slice(&bundle.read(STATE)?).map_err(form(STATE))?;
        let memory = bundle.memory(&bases, !matches!(mode, Mode::Lazy(Some(_))))?;
        let has_note = bundle.manifest().files.contains_key(NOTE);
        let note = has_note.then(|| bundle.read(NOTE)).transpose()?;
        Ok(Restore {
            config,
            state,
            memory,
            mode,
            directory: bundle.directory().clone(),
            note,
            progress: None,
        })
    }

    /// Calls `progress` while memory is read at once ([`Mode::Copy`]).
    pub fn with_progress(self, progress: Option<Progress>) -> Self {
        Restore { progress, ..self }
    }

    /// What was noted of the machine (see [`NOTE`]).
    pub fn note(&self) -> Option<&[u8]> {
        self.note.as_deref()
    }

    /// Opens every disk of the snapshot, as a machine that is made of it does.
    pub fn check_disks(&self) -> Result<(), disk::Error> {
        let mut drives = self.config.devices.block.iter().filter(|drive| drive.source == Source::Snapshot);
        drives.try_for_each(|drive| disk::open(&drive.disk()).map(drop))
    }

    /// Refuses a configuration that lets the machine write to a disk of which only the configuration knows, as what it had on
    /// it is not in the bundle and nobody here has named it; and one with a disk that has no path.
    pub fn check_user_disks(&self, config: &VmConfig) -> Result<(), LoadError> {
        let mut drives = config.devices.block.iter().enumerate();
        let is_nowhere = |drive: &block::Config| drive.path_on_host.as_os_str().is_empty();
        let is_unknown = |drive: &block::Config| !drive.is_read_only || is_nowhere(drive);
        let unknown = drives.find(|(_, drive)| drive.source == Source::User && is_unknown(drive));
        unknown.map_or(Ok(()), |(index, drive)| Err(LoadError::NoDisk { name: drive.name(index) }))
    }

    /// Maps a machine's memory, in host pages of a kind if it can be had for this mode.
    pub(super) fn map(
        &self,
        ranges: &[(GuestAddress, u64)],
        pages: Pages,
    ) -> Result<(Memory, Origin), LoadError> {
        if pages == Pages::Huge2M && self.mode != Mode::Copy {
            log::warn!(
                "the machine goes on in ordinary pages: `--memory-mode copy` puts its memory into huge pages"
            );
        }
        let mut tell = |done, total| self.progress.iter().for_each(|progress| progress(done, total));
        Ok(self.memory.map(ranges, &self.mode, pages, &mut tell)?)
    }

    /// Begins to fill a machine's memory, if it is filled while the machine runs.
    pub(super) fn fill(
        &self,
        memory: &Arc<Memory>,
        outbox: &Outbox,
        on_memory_lost: Option<OnMemoryLost>,
    ) -> Result<Option<Lazy>, LoadError> {
        let Mode::Lazy(from) = &self.mode else { return Ok(None) };
        let source = from.as_deref().map_or(Ok(PagesFrom::Files), PagesFrom::connect)?;
        let outbox = outbox.clone();
        let failed = move |error: &image::Error| {
            let reason = super::chain(error);
            if let Some(tell) = on_memory_lost {
                tell(&reason);
            }
            outbox.send(Message::Failed(reason));
        };
        Ok(Some(Lazy::start(&self.memory, source, memory, failed)?))
    }

    /// What reads memory ahead of its use, if it is mapped.
    pub(super) fn working_set(&self) -> Option<WorkingSet> {
        (self.mode == Mode::Cow).then(|| WorkingSet::new(&self.memory, &self.directory))
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

/// Opens bundles, again if one of them was rewritten meanwhile (rebase) and its files are gone.
pub(super) fn settled<T>(open: impl Fn() -> Result<T, LoadError>) -> Result<T, LoadError> {
    loop {
        match open() {
            Err(LoadError::Bundle(bundle::Error::Replaced { .. })) => {}
            opened => return opened,
        }
    }
}

impl Machine {
    /// Reads the state of all but memory and disks. Everything stands still.
    pub(super) fn save(&self) -> Result<State, Error> {
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
    pub(super) fn freeze_contents(&self) -> Result<Vec<(String, Contents)>, Error> {
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
        let passed = now().saturating_sub(state.time);
        powered.vm.load(&state.vm, passed)?;
        for (mut vcpu, state) in powered.vcpus.each().zip(&state.vcpus) {
            let cycles = u128::from(passed) * u128::from(state.tsc_khz()) / 1_000_000;
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
