//! Names of CPU features, as in Linux' /proc/cpuinfo, and where CPUID reports them (Intel SDM volume 2, CPUID;
//! AMD APM volume 3, appendix E).

use kvm_bindings::kvm_cpuid_entry2;

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// That register of a table entry.
    pub fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        }
    }
}

/// 32 features that are reported together.
pub struct Word {
    /// Leaf (EAX).
    pub leaf: u32,
    /// Subleaf (ECX).
    pub subleaf: u32,
    /// Register of the answer.
    pub register: Register,
    /// Names from bit 0 on, separated by blanks; `-` for a bit without a name.
    names: &'static str,
}

const fn word(leaf: u32, subleaf: u32, register: Register, names: &'static str) -> Word {
    Word { leaf, subleaf, register, names }
}

/// All features that can be hidden by name.
pub const WORDS: [Word; 13] = [
    word(
        1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
         sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        1,
        0,
        Register::Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
         sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor",
    ),
    word(6, 0, Register::Eax, "dtherm ida arat - pln - pts"),
    word(
        7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed \
         adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        "- avx512vbmi umip pku - waitpkg avx512_vbmi2 user_shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
         avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Register::Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear rtm_always_abort - \
         tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile \
         amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    word(
        7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred \
         lkgs wrmsrns - amx_fp16 hreset avx_ifma - - lam",
    ),
    word(
        7,
        1,
        Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi - - - - avx10 - apx",
    ),
    word(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word(0x8000_0007, 0, Register::Edx, "- - - - - - - - nonstop_tsc"),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - amd_stibp_always_on - \
         - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no - brs",
    ),
];

impl Word {
    /// Names and their bits.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.names.split_ascii_whitespace().zip(0..32).filter(|(name, _)| *name != "-")
    }
}

/// What cannot be used without a feature, first the feature itself.
const NEEDED_BY: [&str; 14] = [
    "fxsr sse fxsr_opt",
    "sse sse2 3dnowprefetch misalignsse",
    "sse2 pni pclmulqdq aes sha_ni gfni xsave",
    "pni ssse3 sse4a",
    "ssse3 sse4_1",
    "sse4_1 sse4_2",
    "xsave avx pku mpx amx_tile apx xsaveopt xsavec xgetbv1 xsaves lwp",
    "avx avx2 fma f16c xop fma4 vaes vpclmulqdq avx_vnni avx_ifma avx_vnni_int8 avx_ne_convert \
     avx_vnni_int16 sha512 sm3 sm4",
    "avx2 avx512f",
    "avx512f avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 \
     avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_4vnniw avx512_4fmaps avx512_vp2intersect \
     avx512_fp16 avx512_bf16 avx10",
    "xsavec xsaves xfd",
    "xsaves user_shstk ibt arch_lbr",
    "xfd amx_tile",
    "amx_tile amx_bf16 amx_int8 amx_fp16 amx_complex",
];

/// Which features cannot be used without `name`, directly.
pub fn needed_by(name: &str) -> impl Iterator<Item = &'static str> {
    let mut rows = NEEDED_BY.iter().map(|row| row.split_ascii_whitespace());
    rows.find(|row| row.clone().next() == Some(name)).into_iter().flatten().skip(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_where_cpuid_reports_them() {
        for (name, leaf, subleaf, register, bit) in [
            ("sse2", 1, 0, Register::Edx, 26),
            ("pbe", 1, 0, Register::Edx, 31),
            ("x2apic", 1, 0, Register::Ecx, 21),
            ("hypervisor", 1, 0, Register::Ecx, 31),
            ("avx512f", 7, 0, Register::Ebx, 16),
            ("avx512vl", 7, 0, Register::Ebx, 31),
            ("pku", 7, 0, Register::Ecx, 3),
            ("la57", 7, 0, Register::Ecx, 16),
            ("pks", 7, 0, Register::Ecx, 31),
            ("amx_tile", 7, 0, Register::Edx, 24),
            ("spec_ctrl_ssbd", 7, 0, Register::Edx, 31),
            ("avx512_bf16", 7, 1, Register::Eax, 5),
            ("lam", 7, 1, Register::Eax, 26),
            ("avx10", 7, 1, Register::Edx, 19),
            ("apx", 7, 1, Register::Edx, 21),
            ("xsaves", 0xd, 1, Register::Eax, 3),
            ("pdpe1gb", 0x8000_0001, 0, Register::Edx, 26),
            ("3dnow", 0x8000_0001, 0, Register::Edx, 31),
            ("topoext", 0x8000_0001, 0, Register::Ecx, 22),
            ("mwaitx", 0x8000_0001, 0, Register::Ecx, 29),
            ("nonstop_tsc", 0x8000_0007, 0, Register::Edx, 8),
            ("amd_ssbd", 0x8000_0008, 0, Register::Ebx, 24),
            ("brs", 0x8000_0008, 0, Register::Ebx, 31),
        ] {
            let word = WORDS.iter().find(|word| word.names().any(|(other, _)| other == name)).unwrap();
            assert_eq!((word.leaf, word.subleaf, word.register), (leaf, subleaf, register), "{name}");
            assert!(word.names().any(|found| found == (name, bit)), "{name}");
        }
    }

    #[test]
    fn every_name_is_there_once() {
        let mut names = BTreeSet::new();
        for name in WORDS.iter().flat_map(Word::names).map(|(name, _)| name) {
            assert!(names.insert(name), "{name} twice");
        }
        for name in NEEDED_BY.iter().flat_map(|row| row.split_ascii_whitespace()) {
            assert!(names.contains(&name), "{name} is unknown");
        }
    }
}
