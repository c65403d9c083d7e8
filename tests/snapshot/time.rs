//! The guest's clock goes on by the time that has passed, whether KVM knows the host's wall clock or not.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rvmm::arch::x86_64::layout;
use rvmm::kvm::state::VmState;
use rvmm::kvm::{self, Reserved, Vm};
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
