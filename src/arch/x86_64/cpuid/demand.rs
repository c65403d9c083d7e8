//! What a guest's CPUID table promises and another host cannot keep (Intel SDM volume 2, CPUID; Linux
//! Documentation/virt/kvm/x86/cpuid.rst).

use kvm_bindings::kvm_cpuid_entry2;

use super::features::WORDS;
use super::{ALWAYS, vendor};

/// What the monitor sets itself, whatever KVM supports: it describes the topology.
const OURS: [&str; 3] = ["ht", "cmp_legacy", "topoext"];
/// What a processor prefers and no guest counts on (AMD APM volume 3, CPUID Fn8000_0008_EBX bit 17: STIBP may be left on always).
const ADVICE: &str = "amd_stibp_always_on";
/// Leaf of the features of KVM's own.
const PARAVIRTUAL: u32 = 0x4000_0001;
/// Leaf of the components of the extended state.
const COMPONENTS: u32 = 0xd;

/// Names of what `guest` promises and `supported` has not.
pub fn missing(guest: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Vec<String> {
    let find = |table: &[kvm_cpuid_entry2], leaf, subleaf| {
        let found = table.iter().find(|entry| entry.function == leaf && entry.index == subleaf);
        found.copied().unwrap_or_default()
    };
    let mut names = Vec::new();
    let (wanted, here) = (vendor(guest), vendor(supported));
    if wanted != here {
        names.push(format!("a CPU of {wanted} (this one is of {here})"));
    }
    for word in &WORDS {
        let value = |table| *word.register.of(&mut find(table, word.leaf, word.subleaf));
        let mut lacking = value(guest) & !value(supported);
        if (word.leaf, word.register) == (1, super::Register::Ecx) {
            lacking &= !ALWAYS;
        }
        let bits = word.names().filter(|(_, bit)| lacking & 1 << bit != 0).map(|(name, _)| name);
        names.extend(bits.filter(|name| !OURS.contains(name) && *name != ADVICE).map(String::from));
    }
    let lacking = find(guest, PARAVIRTUAL, 0).eax & !find(supported, PARAVIRTUAL, 0).eax;
    names.extend((0..32).filter(|bit| lacking & 1 << bit != 0).map(|bit| format!("KVM feature {bit}")));
    let components = |table| {
        let entry = find(table, COMPONENTS, 0);
        u64::from(entry.edx) << 32 | u64::from(entry.eax)
    };
    let lacking = components(guest) & !components(supported);
    names.extend((0..64).filter(|bit| lacking & 1 << bit != 0).map(|bit| format!("XSAVE component {bit}")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn table(name: &[u8; 12], ecx: u32, components: u32) -> Vec<kvm_cpuid_entry2> {
        let words = name.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>();
        vec![
            leaf(0, [1, words[0], words[2], words[1]]),
            leaf(1, [0, 0, ecx, 0]),
            leaf(COMPONENTS, [components, 0, 0, 0]),
        ]
    }

    #[test]
    fn what_is_not_there_is_named() {
        let here = table(b"GenuineIntel", 1 << 28, 0b11);
        assert_eq!(missing(&here, &here), [""; 0]);
        // What the monitor gives every guest is not missed.
        assert_eq!(missing(&table(b"GenuineIntel", ALWAYS, 0b1), &here), [""; 0]);
        // Nor is advice; who is told of STIBP (bit 15) counts on it.
        let advised = [&here[..], &[leaf(0x8000_0008, [0, 1 << 17 | 1 << 15, 0, 0])]].concat();
        assert_eq!(missing(&advised, &here), ["amd_stibp"]);
        let there = table(b"AuthenticAMD", 1 << 28 | 1 << 25, 0b111);
        let expected = ["a CPU of AuthenticAMD (this one is of GenuineIntel)", "aes", "XSAVE component 2"];
        assert_eq!(missing(&there, &here), expected);
        assert_eq!(missing(&[], &[]), [""; 0]);
    }
}
