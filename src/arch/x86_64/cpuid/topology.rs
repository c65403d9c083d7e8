//! One package, as many cores as there are vCPUs, one thread in each; every vCPU's APIC id is its index
//! (Intel SDM volume 3, 10.9; AMD APM volume 3, E.5).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// CPUID 1, EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// CPUID 0x80000001, ECX: more than one core, on AMD.
const CMP_LEGACY: u32 = 1 << 1;

/// The place of one vCPU among all.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// The CPU is AMD's or Hygon's.
    pub amd: bool,
}

impl Topology {
    /// Bits of an APIC id that say which core it is.
    fn core_bits(&self) -> u32 {
        self.vcpus.max(1).next_power_of_two().ilog2()
    }

    /// Writes the vCPU's place into every entry that reports one and replaces the extended topology leaves.
    pub fn apply(&self, entries: &mut Vec<kvm_cpuid_entry2>) {
        for entry in entries.iter_mut() {
            match entry.function {
                1 => self.features(entry),
                4 => self.intel_cache(entry),
                0x8000_0001 if self.amd => set(&mut entry.ecx, CMP_LEGACY, self.vcpus > 1),
                0x8000_0008 if self.amd => {
                    entry.ecx =
                        (entry.ecx & !0xf0ff) | (self.vcpus - 1).min(0xff) | self.core_bits().min(15) << 12;
                }
                0x8000_001d => self.amd_cache(entry),
                0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.vcpu, self.vcpu & 0xff, 0),
                _ => {}
            }
        }
        for leaf in [0xb, 0x1f] {
            if let Some(first) = entries.iter().position(|entry| entry.function == leaf) {
                entries.retain(|entry| entry.function != leaf);
                entries.splice(first..first, self.levels(leaf));
            }
        }
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        let count = (1u32 << self.core_bits()).min(0xff);
        entry.ebx = (entry.ebx & 0xffff) | count << 16 | (self.vcpu & 0xff) << 24;
        set(&mut entry.edx, HTT, self.vcpus > 1);
    }

    /// Levels 1 and 2 belong to a core, level 3 to the package.
    fn sharing(&self, cache: u32) -> u32 {
        let shared = (cache >> 5 & 7) >= 3;
        if shared { ((1u32 << self.core_bits()) - 1).min(0xfff) } else { 0 }
    }

    fn intel_cache(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f != 0 {
            let cores = ((1u32 << self.core_bits()) - 1).min(0x3f);
            entry.eax = (entry.eax & 0x3fff) | self.sharing(entry.eax) << 14 | cores << 26;
        }
    }

    fn amd_cache(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f != 0 {
            entry.eax = (entry.eax & !(0xfff << 14)) | self.sharing(entry.eax) << 14;
        }
    }

    /// Threads, cores, end of the list.
    fn levels(&self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | index,
            edx: self.vcpu,
            ..Default::default()
        };
        [level(0, 0, 1, LEVEL_THREAD), level(1, self.core_bits(), self.vcpus, LEVEL_CORE), level(2, 0, 0, 0)]
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(topology: Topology, mut entries: Vec<kvm_cpuid_entry2>) -> Vec<kvm_cpuid_entry2> {
        topology.apply(&mut entries);
        entries
    }

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    const ONE: Topology = Topology { vcpu: 0, vcpus: 1, amd: false };
    const FIFTH_OF_SIX: Topology = Topology { vcpu: 4, vcpus: 6, amd: true };

    #[test]
    fn every_vcpu_has_its_id() {
        let host = kvm_cpuid_entry2 { ebx: 0x7f40_0800, edx: HTT, ..leaf(1, 0, 0) };
        let [one] = apply(ONE, vec![host])[..] else { panic!() };
        assert_eq!((one.ebx, one.edx), (0x0001_0800, 0));
        let [six] = apply(FIFTH_OF_SIX, vec![host])[..] else { panic!() };
        assert_eq!((six.ebx, six.edx), (0x0408_0800, HTT));
        let wide = apply(Topology { vcpu: 300, vcpus: 400, amd: false }, vec![host]);
        assert_eq!(wide[0].ebx, 0x2cff_0800);
    }

    #[test]
    fn extended_topology_has_threads_and_cores() {
        let host = vec![leaf(0xa, 0, 9), leaf(0xb, 0, 1), leaf(0xb, 1, 7), leaf(0xd, 0, 0)];
        let entries = apply(FIFTH_OF_SIX, host.clone());
        let row = |entry: &kvm_cpuid_entry2| {
            (entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx)
        };
        assert_eq!(entries.iter().map(|entry| entry.function).collect::<Vec<_>>(), [0xa, 0xb, 0xb, 0xb, 0xd]);
        assert_eq!(row(&entries[1]), (0xb, 0, 0, 1, 0x100, 4));
        assert_eq!(row(&entries[2]), (0xb, 1, 3, 6, 0x201, 4));
        assert_eq!(row(&entries[3]), (0xb, 2, 0, 0, 2, 4));
        assert!(entries[1..4].iter().all(|entry| entry.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
        assert_eq!(row(&apply(ONE, host)[2]), (0xb, 1, 0, 1, 0x201, 0));
        assert!(apply(ONE, vec![leaf(1, 0, 0)]).iter().all(|entry| entry.function != 0xb), "not invented");
    }

    #[test]
    fn caches_belong_to_cores_but_the_last_one() {
        // Level 2 and 3 of a host with 128 logical processors.
        let (second, third) = (0xfc00_4143, 0xfc1f_c163);
        let entries = apply(FIFTH_OF_SIX, vec![leaf(4, 2, second), leaf(4, 3, third), leaf(4, 4, 0)]);
        let shared = |eax: u32| ((eax >> 14 & 0xfff) + 1, (eax >> 26) + 1, eax & 0x3fff);
        assert_eq!(shared(entries[0].eax), (1, 8, 0x143));
        assert_eq!(shared(entries[1].eax), (8, 8, 0x163));
        assert_eq!(entries[2].eax, 0);
        let entries = apply(FIFTH_OF_SIX, vec![leaf(0x8000_001d, 3, 0x003c_0163)]);
        assert_eq!(entries[0].eax, 0x0001_c163);
    }

    #[test]
    fn amd_counts_its_cores() {
        let host = kvm_cpuid_entry2 { ecx: 0x0001_707f, ..leaf(0x8000_0008, 0, 0x3030) };
        let entries = apply(FIFTH_OF_SIX, vec![host, leaf(0x8000_001e, 0, 99), leaf(0x8000_0001, 0, 0)]);
        assert_eq!((entries[0].eax, entries[0].ecx), (0x3030, 0x0001_3005));
        assert_eq!((entries[1].eax, entries[1].ebx, entries[1].ecx), (4, 4, 0));
        assert_eq!(entries[2].ecx, CMP_LEGACY);
        assert_eq!(apply(ONE, vec![host])[0], host, "Intel reports something else there");
    }
}
