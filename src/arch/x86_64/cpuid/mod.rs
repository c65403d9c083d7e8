//! What the CPU says of itself (Intel SDM volume 2, CPUID; Linux Documentation/virt/kvm/x86/cpuid.rst).

mod demand;
mod features;
mod mask;
mod topology;
mod xsave;

pub use demand::missing;
pub use mask::Mask;

use kvm_bindings::kvm_cpuid_entry2;

use self::features::Register;
use self::topology::Topology;

/// Whose table it is.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Index of the vCPU, which is its APIC id.
    pub vcpu: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What is hidden.
    pub mask: &'a Mask,
}

/// Leaves that are left out whole: performance counters, MWAIT, cache allocation, SGX, processor trace, nested
/// virtualization, memory encryption, AMD's counters and AMD's second topology.
const LEFT_OUT: [u32; 12] =
    [0x5, 0x9, 0xa, 0xf, 0x10, 0x12, 0x14, 0x8000_000a, 0x8000_001b, 0x8000_001f, 0x8000_0022, 0x8000_0026];

/// What goes with those leaves or cannot work in this machine.
const NEVER: &str = "monitor,mwaitx,pdcm,dtes64,ds_cpl,dts,smx,est,tm2,dca,vmx,svm,skinit,sgx,sgx_lc,cqm,rdt_a,\
                     intel_pt,arch_lbr,perfctr_core,perfctr_nb,perfctr_llc,ibs,lwp,brs";

/// What every vCPU has: x2APIC, TSC deadline timer and a hypervisor below it (leaf 1, ECX).
const ALWAYS: u32 = 1 << 21 | 1 << 24 | 1 << 31;

/// The CPUID table of one vCPU, made of what KVM supports.
pub fn filter(supported: &[kvm_cpuid_entry2], config: &Config) -> Vec<kvm_cpuid_entry2> {
    let mut entries = supported.to_vec();
    entries.retain(|entry| !LEFT_OUT.contains(&entry.function));
    if let Some(entry) = entries.iter_mut().find(|entry| entry.function == 1) {
        *Register::Ecx.of(entry) |= ALWAYS;
    }
    let mask = config.mask.and(NEVER);
    mask.apply(&mut entries);
    if mask.hides("amx_tile") {
        entries.retain(|entry| !matches!(entry.function, 0x1d | 0x1e));
    }
    if mask.hides("avx10") {
        entries.retain(|entry| entry.function != 0x24);
    }
    xsave::apply(&mut entries, &mask);
    let vcpus = config.vcpus.max(1);
    Topology { vcpu: config.vcpu, vcpus, amd: is_amd(supported) }.apply(&mut entries);
    entries
}

/// Whether the CPU has pages of 1 GiB.
pub fn has_gib_pages(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|entry| entry.function == 0x8000_0001 && entry.edx & 1 << 26 != 0)
}

/// Who made the CPU, in twelve letters; empty if the table does not tell.
fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let leaf = entries.iter().find(|entry| entry.function == 0);
    let name = leaf.map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat());
    String::from_utf8_lossy(&name.unwrap_or_default()).into_owned()
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    matches!(vendor(entries).as_str(), "AuthenticAMD" | "HygonGenuine")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn word(text: &[u8; 4]) -> u32 {
        u32::from_le_bytes(*text)
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, [0x1f, word(b"Auth"), word(b"cAMD"), word(b"enti")]),
            leaf(1, [0, 0, !ALWAYS, u32::MAX]),
            leaf(0xa, [7, 0, 0, 0]),
            leaf(0x4000_0000, [0x4000_0001, word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")]),
            leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, u32::MAX, 1 << 26]),
        ]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
        entries.iter().find(|entry| entry.function == function)
    }

    #[test]
    fn the_guest_sees_what_works() {
        let mask = Mask::default();
        let entries = filter(&host(), &Config { vcpu: 0, vcpus: 1, mask: &mask });
        let one = find(&entries, 1).unwrap();
        assert_eq!(one.ecx & ALWAYS, ALWAYS);
        assert_eq!(one.ecx & (1 << 3 | 1 << 5 | 1 << 15), 0, "MONITOR, VMX, PDCM");
        assert!(find(&entries, 0xa).is_none());
        assert_eq!(find(&entries, 0x8000_0001).unwrap().ecx & (1 << 2 | 1 << 29), 0, "SVM, MWAITX");
        assert_eq!(find(&entries, 0x4000_0001), find(&host(), 0x4000_0001));
        assert_eq!(find(&entries, 0x4000_0000), find(&host(), 0x4000_0000));
    }

    #[test]
    fn a_mask_can_hide_what_is_always_there() {
        let mask = "tsc_deadline_timer".parse().unwrap();
        let entries = filter(&host(), &Config { vcpu: 0, vcpus: 1, mask: &mask });
        assert_eq!(find(&entries, 1).unwrap().ecx & ALWAYS, ALWAYS & !(1 << 24));
    }

    #[test]
    fn vendors_are_told_apart() {
        assert!(is_amd(&host()));
        assert!(!is_amd(&[leaf(0, [0, word(b"Genu"), word(b"ntel"), word(b"ineI")])]));
        assert!(!is_amd(&[]));
        assert!(has_gib_pages(&host()) && !has_gib_pages(&[]));
    }

    #[test]
    fn names_that_never_show_exist() {
        NEVER.parse::<Mask>().unwrap();
    }

    #[test]
    fn an_empty_table_stays_empty() {
        assert!(filter(&[], &Config { vcpu: 0, vcpus: 0, mask: &Mask::default() }).is_empty());
    }
}
