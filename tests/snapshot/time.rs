//! The guest's clock goes on by the time that has passed, whether KVM knows the host's wall clock or not.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rvmm::kvm::state::VmState;
use serde_json::{Value, json};

use crate::common::host;
use crate::common::vcpu::{AHEAD, TSC_DEADLINE, fresh, machine, register, went_on};
use crate::need;

/// Nanoseconds on the clock of a saved machine: the first eight bytes of KVM's structure.
fn clock(state: &Value) -> u64 {
    let bytes = state["clock"].as_array().expect("bytes").iter().take(8);
    bytes.rev().fold(0, |value, byte| value << 8 | byte.as_u64().expect("a byte"))
}

#[test]
fn goes_on_by_the_time_that_has_passed() {
    need!(host::kvm());
    let before = Instant::now();
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
        let (gone, passed) = (Duration::from_nanos(now - clock(&whole)), before.elapsed());
        // Within a second after any pause.
        assert!(gone >= Duration::from_millis(1400), "{gone:?} instead of {passed:?}");
        assert!(gone < passed + Duration::from_secs(1), "{gone:?} instead of {passed:?}");
    }
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
