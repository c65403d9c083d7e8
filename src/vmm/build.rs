//! Building a machine: the only way from a configuration to a machine.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::console::ConsoleInput;
use super::machine::{Guest, Machine, registers};
use super::message::Outbox;
use super::platform::Platform;
use super::vcpus::Buses;
use super::workers::{Subscriber, WorkerThread};
use super::{Error, host_console};
use crate::arch::x86_64::kernel::Kernel;
use crate::arch::x86_64::{Initrd, layout};
use crate::config::VmConfig;
use crate::devices::virtio::{Function, Place, Worker, mmio::Mmio};
use crate::kvm;
use crate::memory;
use crate::sys::signals::Termination;

/// What a monitor gets from the program around it: the library itself reads no environment.
pub struct Environment {
    /// Where decompressed kernels are kept.
    pub kernel_cache: Option<PathBuf>,
    /// Signals that ask for the end, if the monitor is to hear them.
    pub termination: Option<Termination>,
    /// How long a guest may take to switch itself off when it is asked to.
    pub grace: Duration,
}

/// Builds a machine and switches it on; its vCPUs stand still. Also returns what is to run on the machine's event loop.
pub(super) fn machine(
    config: &VmConfig,
    kernel_cache: &Option<PathBuf>,
    outbox: &Outbox,
) -> Result<(Machine, Vec<Subscriber>), Error> {
    let kvm = kvm::open()?;
    let vcpus = config.machine_config.vcpu_count;
    kvm::check_vcpus(&kvm, vcpus)?;
    let kernel = Kernel::open(&config.boot_source.kernel_image_path, kernel_cache.as_deref())?;
    let initrd = config.boot_source.initrd_path.as_deref().map(Initrd::open).transpose()?;
    let ranges = layout::ram_ranges(config.machine_config.mem_size_mib << 20);
    let memory = Arc::new(memory::allocate(&ranges, config.machine_config.huge_pages.into())?);
    let notifier = outbox.notifier();
    let console = host_console::open(&config.console)?;
    if let Some(place) = &console.place {
        log::warn!("the console is at {place}");
    }
    let platform = Platform::new(console.output)?;
    let mut buses = Buses::default();
    platform.attach(&mut buses, &notifier)?;

    let mut subscribers: Vec<Subscriber> = Vec::new();
    if let Some(input) = console.input {
        let drained = platform.serial_drained.try_clone()?;
        subscribers.push(Box::new(ConsoleInput::new(input, &platform.serial, drained, outbox.clone())));
    }
    let devices = config.devices.open(&memory, &notifier)?;
    if devices.len() > layout::VIRTIO_MAX {
        return Err(Error::Devices { count: devices.len(), limit: layout::VIRTIO_MAX });
    }
    let (mut functions, mut workers) = (Vec::new(), Vec::new());
    for (slot, (device, place)) in devices.into_iter().enumerate() {
        let function = Arc::new(Mutex::new(Function::new(device, &memory)?));
        buses.mmio.insert(registers(slot), layout::VIRTIO_STRIDE, Arc::new(Mmio::new(&function)))?;
        let worker: Subscriber = Box::new(Worker::new(&function));
        match place {
            Place::Shared => subscribers.push(worker),
            Place::Own => workers.push(WorkerThread::start(format!("virtio{slot}"), worker)?),
        }
        functions.push(function);
    }
    let mut machine = Machine {
        powered: None,
        workers,
        functions,
        platform,
        buses: Arc::new(buses),
        cpuid: kvm::supported_cpuid(&kvm)?,
        kvm,
        config: config.machine_config.clone(),
        guest: Guest { kernel, initrd, command_line: config.boot_source.boot_args.clone() },
        memory,
        outbox: outbox.clone(),
    };
    machine.power_on()?;
    Ok((machine, subscribers))
}
