//! One machine: what stays over a restart in place, and what KVM holds of it while it is on.
//!
//! ```text
//!   build ──► off ──power_on──► on (paused) ──resume──► on (running)
//!              ▲                                             │
//!              └────────── power_off, reset ◄────────────────┘  restart in place
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;

use super::Error;
use super::message::{Message, Outbox};
use super::platform::Platform;
use super::vcpus::{Buses, Vcpus};
use super::workers::WorkerThread;
use crate::arch::x86_64::kernel::{Kernel, Preference};
use crate::arch::x86_64::{Initrd, acpi, boot, cpuid, layout, msr};
use crate::config::MachineConfig;
use crate::devices::virtio::{Function, mmio};
use crate::kvm::{self, Reserved, Vcpu, Vm};
use crate::memory::{self, Memory};

/// A machine and all that it has on the host.
///
/// Fields are dropped from top to bottom: vCPUs end before the devices they reach.
pub struct Machine {
    pub(super) powered: Option<Powered>,
    pub(super) workers: Vec<WorkerThread>,
    pub(super) functions: Vec<Arc<Mutex<Function>>>,
    pub(super) platform: Platform,
    pub(super) buses: Arc<Buses>,
    pub(super) kvm: Kvm,
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    pub(super) config: MachineConfig,
    pub(super) guest: Guest,
    pub(super) memory: Arc<Memory>,
    pub(super) outbox: Outbox,
}

/// What KVM holds of a machine that is on.
pub(super) struct Powered {
    vcpus: Vcpus,
    vm: Vm,
}

/// What is loaded into memory when the machine is switched on.
pub(super) struct Guest {
    pub kernel: Kernel,
    pub initrd: Option<Initrd>,
    pub command_line: String,
}

impl Machine {
    /// Switches the machine on: memory is loaded, vCPUs are at their first instruction and paused.
    pub fn power_on(&mut self) -> Result<(), Error> {
        let vm = Vm::new(&self.kvm, &self.memory, &RESERVED)?;
        self.wire(&vm)?;
        let vcpus = (0..self.config.vcpu_count).map(|index| vm.vcpu(index)).collect::<Result<Vec<_>, _>>()?;
        self.load_guest(&vcpus)?;
        let outbox = self.outbox.clone();
        let report = move |index, exit| outbox.send(Message::Exit(index, exit));
        self.powered = Some(Powered { vcpus: Vcpus::start(vcpus, &self.buses, report)?, vm });
        Ok(())
    }

    /// Loads the kernel with its tables and puts every vCPU at its start: the first at the kernel's entry, the
    /// others waiting to be called.
    fn load_guest(&self, vcpus: &[Vcpu]) -> Result<(), Error> {
        let hardware = self.acpi();
        let config = boot::Config {
            kernel: &self.guest.kernel,
            preference: Preference::default(),
            initrd: self.guest.initrd.as_ref(),
            cmdline: &self.guest.command_line,
            acpi: Some(&hardware),
            gib_pages: cpuid::has_gib_pages(&self.cpuid),
        };
        let start = boot::load(&self.memory, &config)?;
        for (index, vcpu) in vcpus.iter().enumerate() {
            let identity = cpuid::Config {
                vcpu: index as u32,
                vcpus: self.config.vcpu_count,
                mask: &self.config.cpu_mask,
            };
            vcpu.set_cpuid(&cpuid::filter(&self.cpuid, &identity))?;
            vcpu.set_msrs(&msr::boot())?;
        }
        if let Some(first) = vcpus.first() {
            first.set_sregs(&start.sregs(first.sregs()?))?;
            first.set_regs(&start.regs())?;
            first.set_fpu(&start.fpu())?;
        }
        Ok(())
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
            vmgenid: None,
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
    pub fn power_off(&mut self) {
        self.powered = None;
        self.platform.reset();
        self.functions.iter().for_each(|function| lock(function).reset());
        memory::discard(&self.memory);
    }

    /// Lets devices that could not go on try again.
    pub fn retry(&self) {
        self.functions.iter().for_each(|function| lock(function).thaw());
    }

    /// Lets the vCPUs run, and devices that held still move.
    pub fn resume(&self) {
        if let Some(powered) = &self.powered {
            powered.vcpus.resume();
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

/// What Intel's VMX needs below 4 GiB.
const RESERVED: Reserved = Reserved { tss: layout::TSS, identity_map: layout::IDENTITY_MAP };

pub(super) fn lock(function: &Mutex<Function>) -> MutexGuard<'_, Function> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}
