//! Names of machines: what a user may choose, and a short one for who does not care.

use std::fmt;
use std::str::FromStr;

use crate::sys::random;

/// The longest name in bytes. It is part of a socket's path, which Linux limits to 107 bytes.
const MAX: usize = 63;

const MANNERS: [&str; 32] = [
    "agile", "brave", "brisk", "calm", "clear", "cosy", "crisp", "eager", "early", "fair", "fleet", "fond",
    "glad", "grand", "jolly", "keen", "kind", "light", "lucid", "merry", "mild", "neat", "noble", "plain",
    "proud", "quick", "quiet", "sharp", "sleek", "sunny", "warm", "witty",
];
const ANIMALS: [&str; 32] = [
    "adder", "badger", "beaver", "bison", "crane", "dingo", "eagle", "egret", "falcon", "finch", "gecko",
    "heron", "ibis", "koala", "lemur", "llama", "lynx", "marten", "moose", "newt", "ocelot", "otter", "owl",
    "panda", "puffin", "raven", "robin", "seal", "stork", "tapir", "weasel", "wren",
];

/// A valid name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

/// Why a name was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot be a name: it takes 1 to {MAX} letters, digits, dots, dashes and underscores, and starts with a letter or digit"
)]
pub struct Error {
    name: String,
}

impl Name {
    /// A name that most likely no machine has, such as `quiet-otter-3f`.
    pub fn random() -> Self {
        let mut bytes = [0; 3];
        if random::fill(&mut bytes).is_err() {
            // Not random, but its own.
            bytes.copy_from_slice(&std::process::id().to_le_bytes()[..3]);
        }
        let [manner, animal, number] = bytes;
        let word = |words: &[&'static str; 32], byte: u8| words[usize::from(byte) % 32];
        Name(format!("{}-{}-{number:02x}", word(&MANNERS, manner), word(&ANIMALS, animal)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let starts = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let inside = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        match starts && inside && text.len() <= MAX {
            true => Ok(Name(text.into())),
            false => Err(Error { name: text.into() }),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_makes_a_good_file_name() {
        for good in ["a", "web-1", "0.x_Y", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "_a", ".a", "a/b", "../a", "a b", "a\n", "ä", "a\0", &"x".repeat(64)]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn makes_good_names() {
        for _ in 0..1000 {
            let name = Name::random();
            assert_eq!(name.as_str().parse(), Ok(name));
        }
    }
}
