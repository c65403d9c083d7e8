//! Extended state: which components there are and how much room they take (Intel SDM volume 1, 13.2 and 13.4).

use kvm_bindings::kvm_cpuid_entry2;

use super::mask::Mask;

const LEAF: u32 = 0xd;
/// Legacy region and header.
const FIXED: u32 = 576;
/// CPUID 1, ECX: the CPU has XSAVE.
const XSAVE: u32 = 1 << 26;

/// Which components belong to a feature.
const COMPONENTS: [(&str, u64); 6] = [
    ("avx", 1 << 2),
    ("mpx", 0b11 << 3),
    ("avx512f", 0b111 << 5),
    ("pku", 1 << 9),
    ("amx_tile", 0b11 << 17),
    ("apx", 1 << 19),
];
/// Components that only the supervisor state has.
const SUPERVISOR: [(&str, u64); 5] = [
    ("intel_pt", 1 << 8),
    ("enqcmd", 1 << 10),
    ("user_shstk", 0b11 << 11),
    ("uintr", 1 << 14),
    ("arch_lbr", 1 << 15),
];

/// Takes the components of hidden features out of leaf 0xD and computes the sizes anew.
pub fn apply(entries: &mut Vec<kvm_cpuid_entry2>, mask: &Mask) {
    let xsave = entries.iter().any(|entry| entry.function == 1 && entry.ecx & XSAVE != 0);
    if !xsave {
        return entries.retain(|entry| entry.function != LEAF);
    }
    let hidden = |table: &[(&str, u64)]| {
        table.iter().filter(|(name, _)| mask.hides(name)).fold(0, |bits, (_, components)| bits | components)
    };
    let user = !hidden(&COMPONENTS) & components(entries, 0);
    let supervisor = !hidden(&SUPERVISOR) & components(entries, 1);
    let all = user | supervisor;
    entries.retain(|entry| entry.function != LEAF || entry.index < 2 || all >> entry.index.min(63) & 1 == 1);
    let (standard, compact) = (standard_size(entries, user), compact_size(entries, all));
    for entry in entries.iter_mut().filter(|entry| entry.function == LEAF) {
        match entry.index {
            // The CPU starts with nothing but x87 state enabled; KVM follows what the guest enables.
            0 => {
                (entry.eax, entry.edx, entry.ebx, entry.ecx) =
                    (user as u32, (user >> 32) as u32, FIXED, standard)
            }
            1 => {
                (entry.ecx, entry.edx) = (supervisor as u32, (supervisor >> 32) as u32);
                entry.ebx = if entry.eax & COMPACT == 0 { 0 } else { compact };
            }
            _ => {}
        }
    }
}

/// CPUID 0xD.1, EAX: XSAVEC or XSAVES.
const COMPACT: u32 = 1 << 1 | 1 << 3;

/// Components reported by subleaf 0 (user, in EDX:EAX) or 1 (supervisor, in EDX:ECX).
fn components(entries: &[kvm_cpuid_entry2], subleaf: u32) -> u64 {
    let entry = entries.iter().find(|entry| (entry.function, entry.index) == (LEAF, subleaf));
    entry.map_or(0, |entry| {
        let low = if subleaf == 0 { entry.eax } else { entry.ecx };
        u64::from(low) | u64::from(entry.edx) << 32
    })
}

/// The extended components in `which`, in order.
fn extended(entries: &[kvm_cpuid_entry2], which: u64) -> impl Iterator<Item = &kvm_cpuid_entry2> {
    let chosen = move |entry: &&kvm_cpuid_entry2| {
        entry.function == LEAF && (2..64).contains(&entry.index) && which >> entry.index & 1 == 1
    };
    entries.iter().filter(chosen)
}

/// Size with every component at its own offset.
fn standard_size(entries: &[kvm_cpuid_entry2], which: u64) -> u32 {
    extended(entries, which).map(|entry| entry.ebx.saturating_add(entry.eax)).fold(FIXED, u32::max)
}

/// Size with the components one after the other.
fn compact_size(entries: &[kvm_cpuid_entry2], which: u64) -> u32 {
    extended(entries, which).fold(FIXED, |size, entry| {
        let aligned = entry.ecx & 2 != 0;
        let start = if aligned { size.saturating_add(63) & !63 } else { size };
        start.saturating_add(entry.eax)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host with AVX, AVX-512, protection keys, tiles and shadow stacks.
    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(1, 0, [0, 0, XSAVE, 0]),
            leaf(LEAF, 0, [0x602e7, 11008, 11008, 0]),
            leaf(LEAF, 1, [0x1f, 11000, 1 << 11, 0]),
            leaf(LEAF, 2, [256, 576, 0, 0]),
            leaf(LEAF, 5, [64, 1088, 0, 0]),
            leaf(LEAF, 6, [512, 1152, 0, 0]),
            leaf(LEAF, 7, [1024, 1664, 0, 0]),
            leaf(LEAF, 9, [8, 2688, 0, 0]),
            leaf(LEAF, 11, [16, 0, 1, 0]),
            leaf(LEAF, 17, [64, 2752, 2, 0]),
            leaf(LEAF, 18, [8192, 2816, 6, 0]),
        ]
    }

    fn filtered(mask: &str) -> Vec<kvm_cpuid_entry2> {
        let (mut entries, mask) = (host(), mask.parse::<Mask>().unwrap());
        mask.apply(&mut entries);
        apply(&mut entries, &mask);
        entries
    }

    #[test]
    fn nothing_hidden_changes_nothing() {
        let entries = filtered("");
        assert_eq!(entries[1], leaf(LEAF, 0, [0x602e7, FIXED, 11008, 0]));
        assert_eq!((entries.len(), entries[2].ecx), (host().len(), 1 << 11));
        // x87 and header, AVX, AVX-512, keys, shadow stack, tiles at multiples of 64.
        assert_eq!(
            entries[2].ebx,
            (576 + 256 + 64 + 512 + 1024 + 8 + 16u32).next_multiple_of(64) + 64 + 8192
        );
    }

    #[test]
    fn hidden_components_take_no_room() {
        let entries = filtered("avx512f,amx_tile");
        assert_eq!(entries[1], leaf(LEAF, 0, [0x207, FIXED, 2696, 0]));
        let components: Vec<u32> = entries[1..].iter().map(|entry| entry.index).collect();
        assert_eq!(components, [0, 1, 2, 9, 11]);
        assert_eq!(entries[2].ebx, 576 + 256 + 8 + 16);
    }

    #[test]
    fn levels_leave_what_they_know() {
        let entries = filtered("x86-64-v3");
        assert_eq!((entries[1].eax, entries[1].ecx), (7, 832));
        assert_eq!((entries[2].eax, entries[2].ebx, entries[2].ecx), (0, 0, 0));
        assert_eq!(entries.len(), 4);
        assert_eq!(filtered("x86-64-v2").len(), 1, "no extended state at all");
    }
}
