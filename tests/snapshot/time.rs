//! The guest's clock goes on by the time that has passed, whether KVM knows the host's wall clock or not.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rvmm::arch::x86_64::layout;
use rvmm::kvm::state::{VcpuState, VmState, msr_indices};
use rvmm::kvm::{self, Reserved, Vcpu, Vm};
use rvmm::memory::{Pages, allocate};
use serde_json::{Value, json};
use vm_memory::GuestAddress;

use crate::common::host;
use crate::need;

fn machine() -> Vm {
    let memory = Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).expect("memory"));
    let reserved = Reserved { tss: layout::TSS, identity_map: layout::IDENTITY_MAP };
    Vm::new(&kvm::open().expect("KVM"), &memory, &reserved).expect("a machine")
}

/// Nanoseconds on the clock of a saved machine: the first eight bytes of KVM's structure.
fn clock(state: &Value) -> u64 {
    let bytes = state["clock"].as_array().expect("bytes").iter().take(8);
    bytes.rev().fold(0, |value, byte| value << 8 | byte.as_u64().expect("a byte"))
}

#[test]
fn goes_on_by_the_time_that_has_passed() {
    need!(host::kvm());
    let saved = machine().save().expect("a state");
    let start = Instant::now();
    let whole = serde_json::to_value(&saved).expect("JSON");
    let mut without = whole.clone();
    // Flags, and all that they speak of.
    without["clock"].as_array_mut().expect("bytes")[8..].fill(json!(0));
    sleep(Duration::from_millis(1500));
    for state in [&whole, &without] {
        let restored = machine();
        let state: VmState = serde_json::from_value(state.clone()).expect("a state");
        // What the monitor has measured.
        let ahead = start.elapsed().as_nanos() as u64;
        restored.load(&state, ahead).expect("a machine that takes it");
        let now = clock(&serde_json::to_value(restored.save().expect("a state")).expect("JSON"));
        let (gone, passed) = (Duration::from_nanos(now - clock(&whole)), start.elapsed());
        // Within a second after any pause.
        assert!(gone >= Duration::from_millis(1400), "{gone:?} instead of {passed:?}");
        assert!(gone < passed + Duration::from_secs(1), "{gone:?} instead of {passed:?}");
    }
}

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// A register in the saved state of a vCPU.
fn register(state: &Value, wanted: u32) -> Option<u64> {
    let mut registers = state["msrs"].as_array().expect("registers").iter();
    registers.find(|register| register[0] == wanted)?[1].as_u64()
}

/// A vCPU of a new machine in this state, `ahead` cycles later; its state then.
fn went_on(state: &Value, ahead: u64) -> Value {
    let mut vcpu = machine().vcpu(0).expect("a vCPU");
    let state: VcpuState = serde_json::from_value(state.clone()).expect("a state");
    vcpu.load(&state, ahead).expect("a vCPU that takes it");
    save(&vcpu)
}

fn save(vcpu: &Vcpu) -> Value {
    let registers = msr_indices(&kvm::open().expect("KVM")).expect("registers");
    serde_json::to_value(vcpu.save(&registers).expect("a state")).expect("JSON")
}

/// A fresh vCPU, and its TSC.
fn fresh() -> (Value, u64) {
    let mut vcpu = machine().vcpu(0).expect("a vCPU");
    vcpu.set_cpuid(&kvm::supported_cpuid(&kvm::open().expect("KVM")).expect("features")).expect("a vCPU");
    let state = save(&vcpu);
    let tsc = register(&state, TSC).expect("a TSC");
    (state, tsc)
}

const AHEAD: u64 = 5_000_000_000;

#[test]
fn the_tsc_goes_on_later() {
    need!(host::kvm());
    let (mut state, saved) = fresh();
    // Far from what the host has: a KVM that gives guests the host's TSC takes no other.
    let far = saved + 1000 * AHEAD;
    let registers = state["msrs"].as_array_mut().expect("registers");
    registers.iter_mut().filter(|register| register[0] == TSC).for_each(|register| register[1] = json!(far));
    let now = register(&went_on(&state, AHEAD), TSC).expect("a TSC");
    need!(
        (now > far / 2 + saved / 2).then_some(()).ok_or("this KVM gives guests the host's TSC".to_string())
    );
    assert!(now >= far + AHEAD, "{now} after {far}");
}

#[test]
fn its_deadline_is_armed_again() {
    need!(host::kvm());
    let (mut state, saved) = fresh();
    // The local APIC is on, and its timer waits for a deadline.
    let apic = state["lapic"].as_array_mut().expect("bytes");
    apic[0xf1] = json!(1);
    apic[0x320..0x324].clone_from_slice(&[0x40, 0, 4, 0].map(Value::from));
    let armed = |deadline: u64| {
        let mut state = state.clone();
        let registers = state["msrs"].as_array_mut().expect("registers");
        registers.retain(|register| register[0] != TSC_DEADLINE);
        registers.push(json!([TSC_DEADLINE, deadline]));
        register(&went_on(&state, AHEAD), TSC_DEADLINE)
    };
    let later = saved + 1000 * AHEAD;
    need!(
        armed(later).filter(|&found| found != 0).map(drop).ok_or("this KVM has no TSC deadline".to_string())
    );
    // It has passed meanwhile, or its interrupt may have been lost: it is for the time when the guest goes on.
    for lost in [saved + 1, 0] {
        assert!(armed(lost).is_some_and(|found| found != 0), "not armed again");
    }
}
