//! Building a machine: the only way from a configuration to a machine.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Error;
use super::console::ConsoleInput;
use super::machine::{Guest, Machine, registers};
use super::message::Outbox;
use super::platform::Platform;
use super::snapshot::Restore;
use super::vcpus::Buses;
use super::workers::{Subscriber, WorkerThread};
use crate::arch::x86_64::layout;
use crate::bus::Bus;
use crate::config::{MachineConfig, VmConfig};
use crate::console;
use crate::devices::virtio::{Context, Function, Place, VirtioDevice, Worker, mmio::Mmio};
use crate::kvm;
use crate::memory::image::Origin;
use crate::memory::{self, Memory};
use crate::sys::signals::Termination;

/// What a monitor gets from the program around it: the library itself reads no environment.
pub struct Environment {
    /// Where decompressed kernels are kept.
    pub kernel_cache: Option<PathBuf>,
    /// Signals that ask for the end, if the monitor is to hear them.
    pub termination: Option<Termination>,
    /// How long a guest may take to switch itself off when it is asked to.
    pub grace: Duration,
    /// The machine's own directory, where its sockets are.
    pub directory: Option<PathBuf>,
    /// Where the console's log is kept, if that is not the machine's own directory: one that stays when it ends.
    pub log: Option<PathBuf>,
    /// The machine stands still until it is told to go on.
    pub start_paused: bool,
    /// What is mapped from a snapshot is read ahead of its use, and what is used recorded there for the next one.
    pub read_ahead: bool,
    /// Called on another thread when the memory of a machine that gets it while it runs is lost, with the reason. The program
    /// should end at once: threads may wait for that memory for ever, and its pages cannot be touched any more.
    pub on_memory_lost: Option<OnMemoryLost>,
}

/// See [`Environment::on_memory_lost`].
pub type OnMemoryLost = Box<dyn FnOnce(&str) + Send>;

/// Builds a machine and switches it on, or gives it what was saved; its vCPUs stand still. Also returns what is to run
/// on the machine's event loop.
pub(super) fn machine(
    config: &VmConfig,
    restore: Option<&Restore>,
    environment: Environment,
    outbox: &Outbox,
) -> Result<(Machine, Vec<Subscriber>), Error> {
    let Environment { kernel_cache, directory, log, read_ahead, on_memory_lost, .. } = environment;
    if let Some(restore) = restore {
        restore.check_user_disks(config)?;
    }
    let kvm = kvm::open()?;
    kvm::check_vcpus(&kvm, config.machine_config.vcpu_count)?;
    let mut guest = Guest::new(config.boot_source.clone(), kernel_cache);
    if restore.is_none() {
        guest.open()?;
    }
    let (memory, origin) = memory(&config.machine_config, restore)?;
    let lazy = restore.map(|restore| restore.fill(&memory, outbox, on_memory_lost)).transpose()?.flatten();
    let console = console::open(&config.console, directory.as_deref(), log.as_deref())?;
    let platform = Platform::new(console.output)?;
    let (mut buses, notifier) = (Buses::default(), outbox.notifier());
    platform.attach(&mut buses, &notifier)?;
    let context = Context { notifier, index: 0, directory, portable: config.portable };
    let Virtio { functions, workers, mut subscribers } =
        Virtio::new(config.devices.open(context)?, &memory, &mut buses.mmio)?;
    if let Some(input) = console.input {
        let drained = platform.serial_drained.try_clone()?;
        subscribers.push(Box::new(ConsoleInput::new(input, &platform.serial, drained, outbox.clone())));
    }
    let mut machine = Machine {
        powered: None,
        _workers: workers,
        functions,
        platform,
        buses: Arc::new(buses),
        kvm,
        config: config.machine_config.clone(),
        guest,
        memory,
        origin,
        lazy,
        working_set: restore.filter(|_| read_ahead).and_then(Restore::working_set),
        outbox: outbox.clone(),
        console: console.place,
    };
    match restore {
        Some(restore) => {
            machine.power_on_empty()?;
            machine.load(restore)?;
        }
        None => machine.power_on()?,
    }
    Ok((machine, subscribers))
}

/// RAM that is empty, or what was saved of it, and what of that is mapped.
fn memory(config: &MachineConfig, restore: Option<&Restore>) -> Result<(Arc<Memory>, Origin), Error> {
    let ranges = layout::ram_ranges(config.mem_size_mib << 20);
    let pages = config.huge_pages.into();
    let (memory, origin) = match restore {
        Some(restore) => restore.map(&ranges, pages)?,
        None => (memory::allocate(&ranges, pages)?, Origin::default()),
    };
    Ok((Arc::new(memory), origin))
}

/// The virtio devices, each at its place on the bus.
struct Virtio {
    functions: Vec<Arc<Mutex<Function>>>,
    /// Threads of those that may block.
    workers: Vec<WorkerThread>,
    /// The others, for the machine's event loop.
    subscribers: Vec<Subscriber>,
}

impl Virtio {
    fn new(
        devices: Vec<(Box<dyn VirtioDevice>, Place)>,
        memory: &Arc<Memory>,
        mmio: &mut Bus,
    ) -> Result<Self, Error> {
        if devices.len() > layout::VIRTIO_MAX {
            return Err(Error::Devices { count: devices.len(), limit: layout::VIRTIO_MAX });
        }
        let mut virtio = Virtio { functions: Vec::new(), workers: Vec::new(), subscribers: Vec::new() };
        for (slot, (device, place)) in devices.into_iter().enumerate() {
            let function = Arc::new(Mutex::new(Function::new(device, memory)?));
            mmio.insert(registers(slot), layout::VIRTIO_STRIDE, Arc::new(Mmio::new(&function)))?;
            let worker: Subscriber = Box::new(Worker::new(&function));
            match place {
                Place::Shared => virtio.subscribers.push(worker),
                Place::Own => virtio.workers.push(WorkerThread::start(format!("virtio{slot}"), worker)?),
            }
            virtio.functions.push(function);
        }
        Ok(virtio)
    }
}
