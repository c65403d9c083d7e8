//! What this host's KVM offers: how fast it runs a guest's kernel, how many vCPUs it allows, what it knows of clocks.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, ioctl};
use crate::memory::{self, Pages};

/// From this speed on (instructions per second) a KVM has hardware behind it. One that emulates instruction by
/// instruction does about a million; hardware, even hardware that another emulator stands in for, over a hundred million.
pub const HARDWARE: f64 = 20e6;

/// How often a loop is run to say how long it takes.
const RUNS: usize = 5;

/// Real mode: `1: dec ecx; jnz 1b; hlt`.
const LOOP: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];

/// How many instructions per second a vCPU runs in kernel mode, measured for some milliseconds.
///
/// # Errors
/// When KVM cannot make a small machine, or cannot run the loop.
pub fn speed(kvm: &Kvm) -> Result<f64, Error> {
    let memory = memory::allocate(&[(GuestAddress(0), 4096)], Pages::Transparent)
        .map_err(|error| Error::Loop { exit: error.to_string() })?;
    memory.write_slice(&LOOP, GuestAddress(0)).map_err(|error| Error::Loop { exit: error.to_string() })?;
    let vm = kvm.create_vm().map_err(ioctl("create a virtual machine"))?;
    for region in memory.iter() {
        let region = kvm_userspace_memory_region {
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the region stays mapped until after `vm` is closed: `memory` was declared before.
        unsafe { vm.set_user_memory_region(region) }.map_err(ioctl("map guest memory"))?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(ioctl("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(ioctl("read the special registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(ioctl("set the special registers"))?;
    // A short loop first: it is enough where every instruction takes a microsecond. The best of some runs counts: on a host
    // that is busy, others run meanwhile.
    let mut rounds = 2_000;
    loop {
        let mut time = run_loop(&mut vcpu, rounds)?;
        for _ in 1..RUNS {
            time = time.min(run_loop(&mut vcpu, rounds)?);
        }
        if time > Duration::from_millis(2) || rounds > 10_000_000 {
            return Ok(2.0 * rounds as f64 / time.as_secs_f64());
        }
        rounds *= 20;
    }
}

/// Runs the loop `rounds` times, two instructions each.
fn run_loop(vcpu: &mut VcpuFd, rounds: u64) -> Result<Duration, Error> {
    let mut regs = vcpu.get_regs().map_err(ioctl("read the general registers"))?;
    (regs.rip, regs.rcx, regs.rflags) = (0, rounds, 2);
    vcpu.set_regs(&regs).map_err(ioctl("set the general registers"))?;
    let start = Instant::now();
    match vcpu.run().map_err(ioctl("run a vCPU"))? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        other => Err(Error::Loop { exit: format!("{other:?}") }),
    }
}

/// How many vCPUs a machine can have, and how many KVM recommends at most.
pub fn vcpus(kvm: &Kvm) -> (u32, u32) {
    (super::most_vcpus(kvm), kvm.get_nr_vcpus() as u32)
}

/// What a KVM knows of clocks: it decides how well a machine's time survives a move in time or place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Clocks {
    /// The guest's timer can be set to a value of its time-stamp counter.
    pub tsc_deadline: bool,
    /// A guest's time-stamp counter can run at another frequency than the host's.
    pub tsc_scaling: bool,
    /// A guest's clock can be read together with the host's wall clock.
    pub realtime: bool,
    /// A guest's clock can be read together with the host's time-stamp counter.
    pub host_tsc: bool,
}

/// The clocks of this KVM.
pub fn clocks(kvm: &Kvm) -> Clocks {
    let flags = kvm.check_extension_int(Cap::AdjustClock);
    let clock = |flag: u32| flags > 0 && flags as u32 & flag != 0;
    Clocks {
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        tsc_scaling: kvm.check_extension(Cap::TscControl),
        realtime: clock(KVM_CLOCK_REALTIME),
        host_tsc: clock(KVM_CLOCK_HOST_TSC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_what_is_here() {
        let Ok(kvm) = super::super::open_device() else { return crate::testing::skip("no /dev/kvm") };
        let (speed, again) = (speed(&kvm).unwrap(), speed(&kvm).unwrap());
        assert!(speed > 1e3 && speed < 1e11, "{speed}");
        assert_eq!(speed > HARDWARE, again > HARDWARE, "{speed} {again}");
        let (max, recommended) = vcpus(&kvm);
        assert!(recommended >= 1 && max >= recommended);
    }
}
