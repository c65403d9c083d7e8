//! A virtual machine in the kernel: its memory slots, interrupt chip and the wires to its devices.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Vcpu, X2APIC_IDS, XAPIC_VCPUS, ioctl, state};
use crate::irq::Irq;
use crate::memory::Memory;
use crate::sys::release;

/// Addresses below 4 GiB where Intel's VMX keeps what the guest must not use.
pub struct Reserved {
    /// Three pages for the task state segment.
    pub tss: u64,
    /// One page for the identity map.
    pub identity_map: u64,
}

/// A virtual machine. Its memory stays mapped as long as it lives.
pub struct Vm {
    pub(super) fd: VmFd,
    _memory: Arc<Memory>,
}

impl Vm {
    /// Creates a machine for `vcpus` vCPUs over `memory` with KVM's own interrupt chip and timer.
    ///
    /// Memory slots come before the interrupt chip: in the other order the kernel waits for a grace
    /// period (measured: 0.9 ms against 5 to 8 ms to the first instruction).
    pub fn new(kvm: &Kvm, vcpus: u32, memory: &Arc<Memory>, reserved: &Reserved) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(ioctl("create a virtual machine"))?;
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the region is mapped, and `_memory` keeps it so until after `fd` is closed,
            // since fields are dropped in the order of their declaration.
            unsafe { fd.set_user_memory_region(region) }.map_err(ioctl("map guest memory"))?;
        }
        fd.set_identity_map_address(reserved.identity_map).map_err(ioctl("place the identity map"))?;
        fd.set_tss_address(reserved.tss as usize).map_err(ioctl("place the task state segment"))?;
        fd.create_irq_chip().map_err(ioctl("create the interrupt chip"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(ioctl("create the timer"))?;
        // Where it is not needed it is left out: it changes the form of the local APIC's saved state.
        if vcpus > XAPIC_VCPUS {
            let args = [X2APIC_IDS.into(), 0, 0, 0];
            fd.enable_cap(&kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args, ..Default::default() })
                .map_err(ioctl("let APIC identifiers have 32 bits"))?;
        }
        Ok(Vm { fd, _memory: Arc::clone(memory) })
    }

    /// Connects a device's interrupt line to pin `gsi` of the interrupt chip.
    pub fn connect(&self, line: &Irq, gsi: u32) -> Result<(), Error> {
        self.fd.register_irqfd(line.eventfd(), gsi).map_err(ioctl("connect an interrupt"))
    }

    /// From now on a 32-bit write of `value` at `address` only signals `kick`, without leaving the kernel.
    pub fn signal_on_write(&self, address: u64, value: u32, kick: &EventFd) -> Result<(), Error> {
        self.fd
            .register_ioevent(kick, &IoEventAddress::Mmio(address), value)
            .map_err(ioctl("connect a queue's doorbell"))
    }

    /// Nobody waits for the kernel to take the machine apart, which takes it many milliseconds: it is done in the
    /// background when the last descriptor is closed. Its interrupt lines stay connected until then.
    pub fn release_in_background(&self) {
        // SAFETY: the descriptor is open as long as `fd` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        if let Err(error) = release::in_background(fd) {
            log::debug!("the machine ends in the foreground: {error}");
        }
    }

    /// Creates vCPU `index`.
    pub fn vcpu(&self, index: u32) -> Result<Vcpu, Error> {
        let fd = self.fd.create_vcpu(index.into()).map_err(ioctl("create a vCPU"))?;
        let xsave_bytes = self.fd.check_extension_int(Cap::Xsave2).max(0) as usize;
        Ok(Vcpu::new(fd, (xsave_bytes / size_of::<u32>()).max(state::LEGACY_WORDS)))
    }
}
