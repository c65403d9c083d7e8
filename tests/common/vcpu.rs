//! Machines in KVM without a monitor, and what is in a vCPU's state.

use std::sync::Arc;

use rvmm::arch::x86_64::layout;
use rvmm::kvm::state::{VcpuState, msr_indices};
use rvmm::kvm::{self, Reserved, Vcpu, Vm};
use rvmm::memory::{Pages, allocate};
use serde_json::Value;
use vm_memory::GuestAddress;

pub fn machine() -> Vm {
    let memory = Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).expect("memory"));
    let reserved = Reserved { tss: layout::TSS, identity_map: layout::IDENTITY_MAP };
    Vm::new(&kvm::open().expect("KVM"), 1, &memory, &reserved).expect("a machine")
}

/// Cycles that have passed.
pub const AHEAD: u64 = 5_000_000_000;

/// The time-stamp counter among the registers.
pub const TSC: u32 = 0x10;
pub const TSC_DEADLINE: u32 = 0x6e0;

/// A register in the saved state of a vCPU.
pub fn register(state: &Value, wanted: u32) -> Option<u64> {
    let mut registers = state["msrs"].as_array().expect("registers").iter();
    registers.find(|register| register[0] == wanted)?[1].as_u64()
}

/// A vCPU of a new machine in this state, `ahead` cycles later; its state then.
pub fn went_on(state: &Value, ahead: u64) -> Value {
    let mut vcpu = machine().vcpu(0).expect("a vCPU");
    let state: VcpuState = serde_json::from_value(state.clone()).expect("a state");
    vcpu.load(&state, ahead).expect("a vCPU that takes it");
    save(&vcpu)
}

pub fn save(vcpu: &Vcpu) -> Value {
    let registers = msr_indices(&kvm::open().expect("KVM")).expect("registers");
    serde_json::to_value(vcpu.save(&registers).expect("a state")).expect("JSON")
}

/// A fresh vCPU, and its TSC.
pub fn fresh() -> (Value, u64) {
    let mut vcpu = machine().vcpu(0).expect("a vCPU");
    vcpu.set_cpuid(&kvm::supported_cpuid(&kvm::open().expect("KVM")).expect("features")).expect("a vCPU");
    let state = save(&vcpu);
    let tsc = register(&state, TSC).expect("a TSC");
    (state, tsc)
}
