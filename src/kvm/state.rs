//! Everything that KVM holds of a machine, as plain data (Documentation/virt/kvm/api.rst).
//!
//! Order matters when it is given back: special registers before XSAVE (CR4.OSXSAVE and XCR0 decide what XSAVE
//! takes), the local APIC before the TSC deadline, the TSC before its deadline, pending events last.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, Xsave,
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use super::vcpu::Vcpu;
use super::vm::Vm;
use super::{Error, ioctl};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// KVM's own range (Documentation/virt/kvm/x86/msr.rst); the list of the kernel leaves some of it out.
const KVM_MSRS: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4d0f;

/// Memory types (Intel SDM volume 3, 12.11.2): KVM keeps them and leaves them out of its list.
const MEMORY_TYPES: [std::ops::RangeInclusive<u32>; 4] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f];
const MEMORY_TYPE_DEFAULT: u32 = 0x2ff;

/// State of one vCPU.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u32>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
    tsc_khz: u32,
}

/// State of the interrupt chip, the timer and the clock.
#[derive(Clone, Serialize, Deserialize)]
pub struct VmState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

/// The indices of all registers that KVM says belong to a vCPU's state, with its own, without those of the TSC,
/// which have their own order.
pub fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, Error> {
    let list = kvm.get_msr_index_list().map_err(ioctl("list the model-specific registers"))?;
    let listed = list.as_slice().iter().copied();
    let types = MEMORY_TYPES.into_iter().flatten().chain([MEMORY_TYPE_DEFAULT]);
    let mut indices: Vec<u32> = listed.chain(KVM_MSRS).chain(types).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.retain(|&index| index != MSR_TSC && index != MSR_TSC_DEADLINE);
    Ok(indices)
}

impl Vcpu {
    /// Reads the whole state; the vCPU is stopped. `msrs` are those of [`msr_indices`].
    pub fn save(&self, msrs: &[u32]) -> Result<VcpuState, Error> {
        let fd = &self.fd;
        // An access to a device that was under way is finished by KVM only when the vCPU is entered again.
        Ok(VcpuState {
            // First: KVM folds what is pending into it.
            mp_state: fd.get_mp_state().map_err(ioctl("read the run state"))?,
            cpuid: self.cpuid.clone(),
            regs: fd.get_regs().map_err(ioctl("read the general registers"))?,
            sregs: self.sregs()?,
            xcrs: fd.get_xcrs().map_err(ioctl("read the extended control registers"))?,
            xsave: self.xsave()?,
            debug: fd.get_debug_regs().map_err(ioctl("read the debug registers"))?,
            lapic: fd.get_lapic().map_err(ioctl("read the local APIC"))?,
            events: fd.get_vcpu_events().map_err(ioctl("read the pending events"))?,
            msrs: self.msrs(msrs)?.into_iter().chain(self.msrs(&[MSR_TSC, MSR_TSC_DEADLINE])?).collect(),
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Gives a fresh vCPU this state. The TSC goes on `tsc_ahead` cycles later than it was saved.
    pub fn load(&mut self, state: &VcpuState, tsc_ahead: u64) -> Result<(), Error> {
        self.set_tsc_speed(state.tsc_khz)?;
        self.set_cpuid(&state.cpuid)?;
        let fd = &self.fd;
        fd.set_regs(&state.regs).map_err(ioctl("set the general registers"))?;
        self.set_sregs(&state.sregs)?;
        // A host without XSAVE has none, and takes none.
        if state.xcrs.nr_xcrs > 0 {
            fd.set_xcrs(&state.xcrs).map_err(ioctl("set the extended control registers"))?;
        }
        self.set_xsave(&state.xsave)?;
        fd.set_debug_regs(&state.debug).map_err(ioctl("set the debug registers"))?;
        fd.set_lapic(&state.lapic).map_err(ioctl("set the local APIC"))?;
        let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, ..Default::default() };
        let timeless = state.msrs.iter().filter(|(index, _)| *index != MSR_TSC && *index != MSR_TSC_DEADLINE);
        self.set_msrs(&timeless.map(entry).collect::<Vec<_>>())?;
        let value = |wanted| state.msrs.iter().find(|(index, _)| *index == wanted).map(|(_, data)| *data);
        if let Some(tsc) = value(MSR_TSC) {
            let tsc = tsc.wrapping_add(tsc_ahead);
            self.set_msrs(&[entry(&(MSR_TSC, tsc))])?;
            if let Some(deadline) = value(MSR_TSC_DEADLINE) {
                // Zero means that the timer is not armed, or that it has just fired and its interrupt may be lost:
                // one that comes too early does no harm, one that never comes does.
                let deadline = if deadline == 0 { tsc } else { deadline };
                self.set_msrs(&[entry(&(MSR_TSC_DEADLINE, deadline))])?;
            }
        }
        fd.set_mp_state(state.mp_state).map_err(ioctl("set the run state"))?;
        fd.set_vcpu_events(&state.events).map_err(ioctl("set the pending events"))?;
        // Only guests with kvmclock can be told that they were away.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }

    /// Lets the TSC run as fast as it did. Two measurements of one clock differ a little: so much is nothing to a guest.
    fn set_tsc_speed(&self, saved: u32) -> Result<(), Error> {
        const TOLERANCE: u32 = 4000;
        let here = self.fd.get_tsc_khz().unwrap_or(0);
        if saved == 0 || here == 0 || saved.abs_diff(here) <= here / TOLERANCE {
            return Ok(());
        }
        self.fd.set_tsc_khz(saved).map_err(|_| Error::Tsc { saved, here })
    }

    /// Reads the registers among `indices` that exist; KVM stops at each that does not.
    fn msrs(&self, indices: &[u32]) -> Result<Vec<(u32, u64)>, Error> {
        let doing = "read the model-specific registers";
        let mut found = Vec::with_capacity(indices.len());
        let mut rest = indices;
        while !rest.is_empty() {
            let entries: Vec<_> =
                rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(|_| Error::TooMany { doing })?;
            let count = self.fd.get_msrs(&mut msrs).map_err(ioctl(doing))?;
            found.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
            rest = rest.get(count + 1..).unwrap_or_default();
        }
        Ok(found)
    }

    /// Floating-point and vector registers, in the form of XSAVE.
    fn xsave(&self) -> Result<Vec<u32>, Error> {
        let doing = "read the vector registers";
        let mut xsave = Xsave::new(self.xsave_words.saturating_sub(LEGACY_WORDS))
            .map_err(|_| Error::TooMany { doing })?;
        // SAFETY: `xsave_words` is what KVM says it writes, and `xsave` has room for it.
        unsafe { self.fd.get_xsave2(&mut xsave) }.map_err(ioctl(doing))?;
        let legacy = xsave.as_fam_struct_ref().xsave.region;
        Ok(legacy.iter().chain(xsave.as_slice()).copied().collect())
    }

    fn set_xsave(&self, words: &[u32]) -> Result<(), Error> {
        let doing = "set the vector registers";
        let invalid = || Error::Ioctl { doing, source: kvm_ioctls::Error::new(libc::EINVAL) };
        let (legacy, extra) = words.split_at_checked(LEGACY_WORDS).ok_or_else(invalid)?;
        if words.len() > self.xsave_words {
            let bytes = |words| words * size_of::<u32>();
            return Err(Error::Xsave { found: bytes(words.len()), limit: bytes(self.xsave_words) });
        }
        // KVM reads as much as it says, whatever was saved.
        let len = self.xsave_words - LEGACY_WORDS;
        let mut xsave = Xsave::from_header(kvm_xsave2 {
            len,
            xsave: kvm_xsave { region: legacy.try_into().map_err(|_| invalid())?, ..Default::default() },
        })
        .map_err(|_| Error::TooMany { doing })?;
        xsave.as_mut_slice()[..extra.len()].copy_from_slice(extra);
        // SAFETY: the structure is at least as long as KVM says that it reads.
        unsafe { self.fd.set_xsave2(&xsave) }.map_err(ioctl(doing))
    }
}

/// 32-bit words in the part of XSAVE that every KVM knows.
pub(super) const LEGACY_WORDS: usize = 1024;

impl VcpuState {
    /// CPUID as the guest saw it.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Frequency of the TSC in kHz, zero if KVM did not tell.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }
}

impl Vm {
    /// Reads the state; all vCPUs are stopped.
    pub fn save(&self) -> Result<VmState, Error> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(ioctl("read the interrupt chip"))?;
            Ok(chip)
        };
        Ok(VmState {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().map_err(ioctl("read the timer"))?,
            clock: self.fd.get_clock().map_err(ioctl("read the clock"))?,
        })
    }

    /// Gives a fresh machine this state. Its clock goes on later by the time that has passed since it was saved: by the host's
    /// wall clock if KVM has told it and takes it, else by `passed` nanoseconds.
    pub fn load(&self, state: &VmState, passed: u64) -> Result<(), Error> {
        let doing = "set the interrupt chip";
        let chips = [
            (&state.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (&state.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (&state.ioapic, KVM_IRQCHIP_IOAPIC),
        ];
        for (chip, id) in chips {
            if chip.chip_id != id {
                return Err(Error::Ioctl { doing, source: kvm_ioctls::Error::new(libc::EINVAL) });
            }
            self.fd.set_irqchip(chip).map_err(ioctl(doing))?;
        }
        self.fd.set_pit2(&state.pit).map_err(ioctl("set the timer"))?;
        let counts = self.fd.check_extension_int(Cap::AdjustClock) as u32 & KVM_CLOCK_REALTIME != 0;
        let clock = match state.realtime().filter(|_| counts) {
            // KVM adds the time that has passed since, at the very moment.
            Some(realtime) => kvm_clock_data {
                clock: state.clock.clock,
                flags: KVM_CLOCK_REALTIME,
                realtime,
                ..Default::default()
            },
            None => kvm_clock_data { clock: state.clock.clock.wrapping_add(passed), ..Default::default() },
        };
        self.fd.set_clock(&clock).map_err(ioctl("set the clock"))
    }
}

impl VmState {
    /// Wall-clock time of the host when the clock was read, in nanoseconds since 1970, if KVM told.
    pub fn realtime(&self) -> Option<u64> {
        (self.clock.flags & KVM_CLOCK_REALTIME != 0).then_some(self.clock.realtime)
    }
}
