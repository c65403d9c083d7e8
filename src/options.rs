//! Values with options, as they are written on the command line: `FIRST[,key[=value]]...`.

/// A value taken apart. Keys are checked against what the caller knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// What stands before the first comma.
    pub first: &'a str,
    /// The options in order; a bare key has no value.
    pub pairs: Vec<(&'a str, Option<&'a str>)>,
}

/// Why a value was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such key.
    #[error("Unknown option `{key}`, did you mean `{nearest}`? Known are: {known}")]
    UnknownKey {
        /// What was written.
        key: String,
        /// The known key that looks most like it.
        nearest: String,
        /// All known keys.
        known: String,
    },
    /// No key at all goes with this value.
    #[error("`{first}` takes no options, so not `{key}`")]
    NoKeys {
        /// What stands before the first comma.
        first: String,
        /// What was written.
        key: String,
    },
    /// The key does not take this value.
    #[error("Option `{key}` cannot be `{value}`: it takes {takes}")]
    BadValue {
        /// The key.
        key: String,
        /// What was written.
        value: String,
        /// What it takes, in words.
        takes: String,
    },
    /// The key needs a value, or takes none.
    #[error("Option `{key}` takes {takes}")]
    Value {
        /// The key.
        key: String,
        /// What it takes, in words.
        takes: String,
    },
    /// Nothing stands before the first comma.
    #[error("A {what} is missing")]
    Missing {
        /// What should stand there.
        what: &'static str,
    },
}

impl<'a> Options<'a> {
    /// Takes `text` apart; every key must be one of `known`.
    pub fn parse(text: &'a str, known: &[&str]) -> Result<Self, Error> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let pairs = parts.map(|part| match part.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (part, None),
        });
        let pairs: Vec<_> = pairs.collect();
        match pairs.iter().find(|(key, _)| !known.contains(key)) {
            Some((key, _)) if known.is_empty() => {
                Err(Error::NoKeys { first: first.into(), key: key.to_string() })
            }
            Some((key, _)) => Err(Error::UnknownKey {
                key: key.to_string(),
                nearest: nearest(key, known).unwrap_or_default().into(),
                known: known.join(", "),
            }),
            None => Ok(Options { first, pairs }),
        }
    }
}

/// A yes-or-no option: a bare key means yes.
pub fn switch(key: &str, value: Option<&str>) -> Result<bool, Error> {
    match value {
        None | Some("on" | "true" | "yes") => Ok(true),
        Some("off" | "false" | "no") => Ok(false),
        Some(other) => Err(bad_value(key, other, "on or off")),
    }
}

/// A size in bytes: a number with M, G or T, or one of `units` bytes.
pub fn size(text: &str, units: u64) -> Option<u64> {
    let shift = match text.as_bytes().last()? {
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        _ => return text.parse::<u64>().ok()?.checked_mul(units),
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The value of an option that must have one.
pub fn required<'a>(key: &str, value: Option<&'a str>, takes: &str) -> Result<&'a str, Error> {
    match value {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(Error::Value { key: key.into(), takes: takes.into() }),
    }
}

/// The error for a value that its key does not take.
pub fn bad_value(key: &str, value: &str, takes: &str) -> Error {
    Error::BadValue { key: key.into(), value: value.into(), takes: takes.into() }
}

/// The candidate that differs from `word` in the fewest letters.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates.iter().copied().min_by_key(|candidate| distance(word, candidate))
}

/// The candidate that `word` is most likely meant to be: the nearest, if it is near. For names that users choose, which have nothing to
/// do with each other.
pub fn similar<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let letters = word.chars().count();
    // Something must be the same.
    let most = (letters / 3).max(2).min(letters.saturating_sub(1));
    nearest(word, candidates).filter(|candidate| distance(word, candidate) <= most)
}

/// Levenshtein distance: the least number of letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_apart() {
        let options = Options::parse("a b=c,ro,id=x=y", &["ro", "id"]).unwrap();
        assert_eq!(options, Options { first: "a b=c", pairs: vec![("ro", None), ("id", Some("x=y"))] });
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("512M", 512 << 20), ("2g", 2 << 30), ("1T", 1 << 40), ("3", 3 << 20), ("0", 0)]
        {
            assert_eq!(size(text, 1 << 20), Some(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1K", "1.5G", "99999999999999999999", "99999999999T", "ä"] {
            assert_eq!(size(bad, 1), None, "{bad}");
        }
    }

    #[test]
    fn names_the_nearest_key() {
        let error = Options::parse("a,formt=raw", &["ro", "id", "format"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Unknown option `formt`, did you mean `format`? Known are: ro, id, format"
        );
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ro", "or", 2)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
