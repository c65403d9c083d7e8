//! CPU features that are hidden from the guest, by name or down to a level of the x86-64 psABI.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::features::{WORDS, Word, needed_by};
use crate::arch::x86_64::Error;

/// A set of hidden features. As text it is a list of names as in /proc/cpuinfo, separated by commas; a name can also
/// be a level, `x86-64-v2` or `x86-64-v3`, above which every instruction is hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mask {
    /// What the user wrote.
    names: BTreeSet<String>,
    /// What follows from it.
    hidden: BTreeSet<&'static str>,
}

/// Instructions of level 3 that level 2 does not have.
const LEVEL_3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";
/// Instructions that no level up to 3 has and that programs may use. What these need or bring in follows.
const BEYOND: &str = "pclmulqdq aes rdrand rdseed adx sha_ni gfni vaes vpclmulqdq fsgsbase rdpid rdpru clflushopt clwb \
    clzero cldemote hle rtm tsxldtrk mpx pku waitpkg user_shstk ibt movdiri movdir64b enqcmd serialize \
    uintr avx512f amx_tile avx_vnni avx_ifma avx_vnni_int8 avx_ne_convert avx_vnni_int16 cmpccxadd \
    rao_int sha512 sm3 sm4 prefetchi apx xsaveopt xsavec xgetbv1 mmxext sse4a misalignsse 3dnowprefetch \
    3dnow 3dnowext xop fma4 tbm";

impl Mask {
    /// Whether nothing is hidden.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the feature `name` is hidden.
    pub fn hides(&self, name: &str) -> bool {
        self.hidden.contains(name)
    }

    /// Clears the bits of hidden features in a CPUID table.
    pub(super) fn apply(&self, entries: &mut [kvm_cpuid_entry2]) {
        for word in &WORDS {
            let bits = self.bits(word);
            for entry in entries.iter_mut() {
                if (entry.function, entry.index) == (word.leaf, word.subleaf) {
                    *word.register.of(entry) &= !bits;
                }
            }
        }
    }

    /// This mask and `names`, separated by commas, which are known.
    pub(super) fn and(&self, names: &str) -> Mask {
        let mut mask = self.clone();
        for name in names.split(',') {
            all().filter(|known| *known == name).for_each(|known| mask.hide(known));
        }
        mask
    }

    fn bits(&self, word: &Word) -> u32 {
        word.names().filter(|(name, _)| self.hides(name)).fold(0, |bits, (_, bit)| bits | 1 << bit)
    }

    fn add(&mut self, name: &str) -> Result<(), Error> {
        match name {
            "x86-64-v2" => words(LEVEL_3).chain(words(BEYOND)).for_each(|name| self.hide(name)),
            "x86-64-v3" => words(BEYOND).for_each(|name| self.hide(name)),
            _ => {
                let known = all().find(|known| *known == name);
                self.hide(
                    known.ok_or_else(|| Error::CpuFeature { name: name.into(), nearest: nearest(name) })?,
                );
            }
        }
        self.names.insert(name.into());
        Ok(())
    }

    /// Hides a feature and whatever cannot be used without it.
    fn hide(&mut self, name: &'static str) {
        if self.hidden.insert(name) {
            needed_by(name).for_each(|name| self.hide(name));
        }
    }
}

fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split_ascii_whitespace()
}

fn all() -> impl Iterator<Item = &'static str> {
    WORDS.iter().flat_map(Word::names).map(|(name, _)| name)
}

/// The known name that takes the fewest changes to get from `name`.
fn nearest(name: &str) -> &'static str {
    all().chain(["x86-64-v2", "x86-64-v3"]).min_by_key(|known| distance(name, known)).unwrap_or_default()
}

/// Insertions, deletions and replacements from one text to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, character) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(character != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

impl FromStr for Mask {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut mask = Mask::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            mask.add(name)?;
        }
        Ok(mask)
    }
}

impl TryFrom<String> for Mask {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Mask> for String {
    fn from(mask: Mask) -> String {
        mask.to_string()
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names.iter().enumerate() {
            write!(formatter, "{}{name}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions of level 2 that level 1 does not have.
    const LEVEL_2: &str = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3";

    fn mask(text: &str) -> Mask {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_it_writes() {
        for text in ["", "pku", "avx512f,pku", "3dnow,x86-64-v2"] {
            assert_eq!(mask(text).to_string(), text);
            let json = serde_json::to_string(&mask(text)).unwrap();
            assert_eq!(serde_json::from_str::<Mask>(&json).unwrap(), mask(text));
        }
        assert_eq!(mask(" pku, ,avx512f "), mask("avx512f,pku"));
        assert!(mask("").is_empty() && !mask("pku").is_empty());
    }

    #[test]
    fn unknown_names_are_answered_with_the_nearest() {
        for (wrong, right) in
            [("avx512", "avx512f"), ("tsc_deadline", "tsc_deadline_timer"), ("x86-64-v4", "x86-64-v2")]
        {
            let error = wrong.parse::<Mask>().unwrap_err();
            assert!(
                matches!(&error, Error::CpuFeature { name, nearest } if name == wrong && *nearest == right),
                "{error}"
            );
        }
        assert!(serde_json::from_str::<Mask>("\"nonsense\"").is_err());
        assert!("ü".repeat(100).parse::<Mask>().is_err());
    }

    #[test]
    fn what_needs_a_hidden_feature_is_hidden_too() {
        let mask = mask("avx");
        for name in ["avx", "avx2", "fma", "avx512f", "avx512vl", "vaes"] {
            assert!(mask.hides(name), "{name}");
        }
        assert!(!mask.hides("xsave") && !mask.hides("aes") && !mask.hides("pku"));
    }

    #[test]
    fn levels_keep_what_they_promise() {
        let (two, three) = (mask("x86-64-v2"), mask("x86-64-v3"));
        for name in words(LEVEL_2) {
            assert!(!two.hides(name) && !three.hides(name), "{name}");
        }
        for name in words(LEVEL_3) {
            assert!(two.hides(name) && !three.hides(name), "{name}");
        }
        for name in ["avx512f", "aes", "pku", "xsaves", "amx_int8"] {
            assert!(two.hides(name) && three.hides(name), "{name}");
        }
        for name in ["fpu", "sse2", "syscall", "nx", "x2apic", "pcid", "smep", "pdpe1gb", "rdtscp"] {
            assert!(!two.hides(name), "{name}");
        }
    }

    #[test]
    fn levels_name_features_that_exist() {
        for name in words(LEVEL_2).chain(words(LEVEL_3)).chain(words(BEYOND)) {
            assert!(all().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn bits_are_cleared() {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let mut entries = [entry(1, 0), entry(7, 0), entry(7, 1)];
        mask("pku,sse4_2").apply(&mut entries);
        assert_eq!((entries[0].ecx, entries[0].edx), (!(1 << 20), u32::MAX));
        assert_eq!((entries[1].ebx, entries[1].ecx), (u32::MAX, !(1 << 3)));
        assert_eq!(entries[2], entry(7, 1));
    }
}
