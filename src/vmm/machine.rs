//! One machine: what stays over a restart in place, and what KVM holds of it while it is on.
//!
//! ```text
//!   build ──► off ──power_on──► on (paused) ──resume──► on (running)
//!              ▲                                             │
//!              └────────── power_off, reset ◄────────────────┘  restart in place
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvm_ioctls::Kvm;
use log::warn;

use super::Error;
use super::message::{Message, Outbox};
use super::platform::Platform;
use super::vcpus::{Buses, Vcpus};
use super::workers::WorkerThread;
use crate::arch::x86_64::kernel::{Kernel, Preference};
use crate::arch::x86_64::{self as arch, Initrd, acpi, boot, cpuid, layout, msr};
use crate::config::{BootSource, MachineConfig};
use crate::devices::ged::Event;
use crate::devices::virtio::{Function, mmio};
use crate::devices::{vmclock, vmgenid};
use crate::image::initramfs;
use crate::kvm::{self, Reserved, Vcpu, Vm};
use crate::memory::image::{Lazy, Origin, WorkingSet};
use crate::memory::{self, Memory};
use crate::sys::lock;

/// A machine and all that it has on the host.
///
/// Fields are dropped from top to bottom: vCPUs end before the devices they reach.
pub struct Machine {
    pub(super) powered: Option<Powered>,
    /// Threads of devices; they end with the machine.
    pub(super) _workers: Vec<WorkerThread>,
    pub(super) functions: Vec<Arc<Mutex<Function>>>,
    pub(super) platform: Platform,
    pub(super) buses: Arc<Buses>,
    pub(super) kvm: Kvm,
    pub(super) config: MachineConfig,
    pub(super) guest: Guest,
    pub(super) memory: Arc<Memory>,
    /// What of memory is mapped from a snapshot.
    pub(super) origin: Origin,
    /// Fills memory while the machine runs.
    pub(super) lazy: Option<Lazy>,
    /// Has memory read ahead of its use.
    pub(super) working_set: Option<WorkingSet>,
    pub(super) outbox: Outbox,
    /// Where a person finds the console, if that is not plain.
    pub(super) console: Option<String>,
}

/// What KVM holds of a machine that is on.
pub(super) struct Powered {
    pub vcpus: Vcpus,
    pub vm: Vm,
}

/// What is loaded into memory when the machine is switched on. A restored machine opens it only when it restarts.
pub(super) struct Guest {
    source: BootSource,
    cache: Option<PathBuf>,
    open: Option<(Kernel, Option<Initrd>)>,
}

impl Guest {
    pub fn new(source: BootSource, cache: Option<PathBuf>) -> Self {
        Guest { source, cache, open: None }
    }

    /// Opens the files, if they are not open.
    pub fn open(&mut self) -> Result<(), arch::Error> {
        if self.open.is_none() {
            let kernel = Kernel::open(&self.source.kernel_image_path, self.cache.as_deref())?;
            let mut initrd = self.source.initrd_path.as_deref().map(Initrd::open).transpose()?;
            if let (Some(initrd), Some(process)) = (&mut initrd, &self.source.process) {
                initrd.append(initramfs::process(process.to_string().as_bytes()));
            }
            self.open = Some((kernel, initrd));
        }
        Ok(())
    }

    fn is_linux(&self) -> bool {
        self.open.as_ref().is_some_and(|(kernel, _)| kernel.is_linux())
    }
}

impl Machine {
    /// Switches the machine on: memory is loaded, vCPUs are at their first instruction and paused.
    pub fn power_on(&mut self) -> Result<(), Error> {
        self.guest.open()?;
        if self.guest.is_linux() && !kvm::may_have_hardware() {
            warn!(
                "KVM has no hardware behind it on this host, and Linux does not come up on such a one: see `rvmm doctor`"
            );
        }
        let count = self.config.vcpu_count;
        if self.guest.is_linux() && count > LINUX_VCPUS {
            warn!(
                "Linux uses {LINUX_VCPUS} of the machine's {count} vCPUs: it wants interrupts that reach all of them"
            );
        }
        let vm = self.create()?;
        let mut vcpus = self.vcpus(&vm)?;
        self.load_guest(&mut vcpus)?;
        self.start(vm, vcpus)
    }

    /// Switches the machine on with vCPUs that have no state yet and memory as it is.
    pub fn power_on_empty(&mut self) -> Result<(), Error> {
        let vm = self.create()?;
        let vcpus = self.vcpus(&vm)?;
        self.start(vm, vcpus)
    }

    /// Makes the machine in KVM, with every interrupt and every doorbell connected.
    fn create(&self) -> Result<Vm, Error> {
        let vm = Vm::new(&self.kvm, self.config.vcpu_count, &self.memory, &RESERVED)?;
        self.wire(&vm)?;
        Ok(vm)
    }

    fn vcpus(&self, vm: &Vm) -> Result<Vec<Vcpu>, Error> {
        Ok((0..self.config.vcpu_count).map(|index| vm.vcpu(index)).collect::<Result<_, _>>()?)
    }

    fn start(&mut self, vm: Vm, vcpus: Vec<Vcpu>) -> Result<(), Error> {
        let outbox = self.outbox.clone();
        let report = move |index, exit| outbox.send(Message::Exit(index, exit));
        let attention = Arc::clone(&self.platform.vcpus_wanted);
        self.powered = Some(Powered { vcpus: Vcpus::start(vcpus, &self.buses, attention, report)?, vm });
        Ok(())
    }

    pub(super) fn powered(&self) -> Result<&Powered, Error> {
        self.powered.as_ref().ok_or(Error::Off)
    }

    /// Loads the kernel with its tables and puts every vCPU at its start: the first at the kernel's entry, the
    /// others waiting to be called.
    fn load_guest(&self, vcpus: &mut [Vcpu]) -> Result<(), Error> {
        let (kernel, initrd) = self.guest.open.as_ref().ok_or(Error::Off)?;
        vmgenid::renew(&self.memory, layout::VMGENID)?;
        vmclock::create(&self.memory, layout::VMCLOCK)?;
        let hardware = self.acpi();
        let supported = kvm::supported_cpuid(&self.kvm)?;
        let config = boot::Config {
            kernel,
            preference: Preference::default(),
            initrd: initrd.as_ref(),
            cmdline: &self.guest.source.boot_args,
            acpi: Some(&hardware),
            gib_pages: cpuid::has_gib_pages(&supported),
        };
        let start = boot::load(&self.memory, &config)?;
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            let identity = cpuid::Config {
                vcpu: index as u32,
                vcpus: self.config.vcpu_count,
                mask: &self.config.cpu_mask,
            };
            vcpu.set_cpuid(&cpuid::filter(&supported, &identity))?;
            vcpu.set_msrs(&msr::boot())?;
        }
        if let Some(first) = vcpus.first() {
            first.set_sregs(&start.sregs(first.sregs()?))?;
            first.set_regs(&start.regs())?;
            first.set_fpu(&start.fpu())?;
        }
        Ok(())
    }

    /// The guest goes on from a saved state: it must not use random numbers twice, nor trust what it knows of its clock.
    pub(super) fn new_generation(&self) {
        let renewed = vmgenid::renew(&self.memory, layout::VMGENID);
        match renewed.and_then(|()| vmclock::disrupt(&self.memory, layout::VMCLOCK)) {
            Ok(()) => self.platform.ged.raise(Event::NewGeneration),
            Err(error) => log::warn!("the guest keeps its generation: {error}"),
        }
    }

    /// What the guest is told of its hardware.
    fn acpi(&self) -> acpi::Config {
        let device = |slot: usize| acpi::MmioDevice {
            base: registers(slot) as u32,
            size: layout::VIRTIO_STRIDE as u32,
            gsi: layout::VIRTIO_GSI + slot as u32,
        };
        acpi::Config {
            cpus: self.config.vcpu_count,
            virtio: (0..self.functions.len()).map(device).collect(),
            com1: true,
            i8042: false,
            pvpanic: true,
            vmgenid: Some(layout::VMGENID),
            vmclock: Some(layout::VMCLOCK),
        }
    }

    /// Connects every interrupt and every doorbell.
    fn wire(&self, vm: &Vm) -> Result<(), kvm::Error> {
        self.platform.connect(vm)?;
        for (slot, function) in self.functions.iter().enumerate() {
            let function = lock(function);
            vm.connect(function.interrupt().line(), layout::VIRTIO_GSI + slot as u32)?;
            for (index, kick) in function.kicks().iter().enumerate() {
                vm.signal_on_write(registers(slot) + mmio::QUEUE_NOTIFY, index as u32, kick)?;
            }
        }
        Ok(())
    }

    /// Switches the machine off: same devices, same disks, empty memory.
    pub fn power_off(&mut self) -> Result<(), Error> {
        self.powered = None;
        self.platform.reset();
        self.functions.iter().for_each(|function| lock(function).power_off());
        self.working_set = None;
        self.origin = Origin::default();
        self.lazy = None;
        Ok(memory::clear(&self.memory)?)
    }

    /// Whether the guest has written nothing to its console and begun with no device since it was switched on.
    pub fn is_silent(&self) -> bool {
        !self.platform.serial.has_spoken() && !self.functions.iter().any(|function| lock(function).is_known())
    }

    /// Lets devices that could not go on try again.
    pub fn retry(&self) {
        self.functions.iter().for_each(|function| lock(function).thaw());
    }

    /// Lets the vCPUs run, and devices that held still move.
    pub fn resume(&self) {
        // What found no room when the vCPUs were called away.
        self.platform.serial.tell(&[]);
        if let Some(powered) = &self.powered {
            powered.vcpus.resume();
        }
    }

    /// The vCPUs have been let go for the first time.
    pub fn has_begun(&mut self) {
        if let Some(working_set) = &mut self.working_set {
            working_set.start(&self.memory, &self.origin);
        }
    }

    /// Stops the vCPUs.
    pub fn pause(&self) {
        if let Some(powered) = &self.powered {
            powered.vcpus.pause();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(powered) = &self.powered {
            powered.vm.release_in_background();
        }
    }
}

/// Where the registers of a virtio device are.
pub(super) fn registers(slot: usize) -> u64 {
    layout::VIRTIO + slot as u64 * layout::VIRTIO_STRIDE
}

/// What has an APIC identifier that KVM's I/O APIC and Linux without interrupt remapping both know.
const LINUX_VCPUS: u32 = 255;

/// What Intel's VMX needs below 4 GiB.
const RESERVED: Reserved = Reserved { tss: layout::TSS, identity_map: layout::IDENTITY_MAP };
