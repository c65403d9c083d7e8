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
use crate::arch::x86_64::kernel::Kernel;
use crate::arch::x86_64::{acpi, boot, cpuid, layout};
use crate::config::MachineConfig;
use crate::devices::virtio::{Function, mmio};
use crate::kvm::{self, Reserved, Vm};
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
    _vm: Vm,
}

/// What is loaded into memory when the machine is switched on.
pub(super) struct Guest {
    pub kernel: Kernel,
    pub initrd: Option<Vec<u8>>,
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
        self.powered = Some(Powered { vcpus: Vcpus::start(vcpus, &self.buses, report)?, _vm: vm });
        Ok(())
    }

    /// Connects every interrupt and every doorbell.
    fn wire(&self, vm: &Vm) -> Result<(), kvm::Error> {
        self.platform.connect(vm)?;
        for (slot, function) in self.functions.iter().enumerate() {
            let function = lock(function);
            let registers = layout::VIRTIO + slot as u64 * layout::VIRTIO_STRIDE;
            vm.connect(function.interrupt().line(), layout::VIRTIO_GSI + slot as u32)?;
            for (index, kick) in function.kicks().iter().enumerate() {
                vm.signal_on_write(registers + mmio::QUEUE_NOTIFY, index as u32, kick)?;
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

pub(super) fn lock(function: &Mutex<Function>) -> MutexGuard<'_, Function> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}
