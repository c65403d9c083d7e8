//! Model-specific registers that firmware would have set (Intel SDM volume 4, chapter 2).

use kvm_bindings::kvm_msr_entry;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast string operations on; branch trace store and event-based sampling not available.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// Memory type ranges on, all memory write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// What every vCPU starts with; the rest is as KVM has it after reset.
pub fn boot() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [entry(IA32_MISC_ENABLE, MISC_ENABLE), entry(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]
}
