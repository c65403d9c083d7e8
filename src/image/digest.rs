//! Content digests: `sha256:` and 64 lowercase hexadecimal digits (OCI image specification 1.1, Content Descriptors, Digests).

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::Error;

/// The SHA-256 of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.digest()
    }

    /// The digest of all that `reader` gives, and how many bytes that was.
    pub fn of_reader(reader: &mut impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Hasher::default();
        let size = io::copy(&mut io::BufReader::with_capacity(1 << 17, reader), &mut hasher)?;
        Ok((hasher.digest(), size))
    }

    /// The digits alone: a file name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].into()
    }

    /// From the digits alone.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let hex = text.strip_prefix("sha256:");
        hex.and_then(Digest::from_hex).ok_or_else(|| Error::BadDigest { text: text.into() })
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// A digest in the making.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Adds content.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what was added.
    pub fn digest(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that knows the digest of what it gave.
pub struct Hashed<R> {
    from: R,
    hasher: Hasher,
}

impl<R: Read> Hashed<R> {
    /// Reads from `from`.
    pub fn new(from: R) -> Self {
        Hashed { from, hasher: Hasher::default() }
    }

    /// The digest of what was read.
    pub fn digest(self) -> Digest {
        self.hasher.digest()
    }

    /// The digest of everything, up to its end; more than `limit` bytes are refused.
    pub fn end(mut self, limit: u64) -> io::Result<Digest> {
        io::copy(&mut (&mut self).take(limit), &mut io::sink())?;
        Ok(self.digest())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(to)?;
        self.hasher.update(&to[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sha256() {
        // FIPS 180-2, appendix B.1.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse::<Digest>().unwrap(), Digest::of(b"abc"));
        assert_eq!(Digest::of_reader(&mut &b"abc"[..]).unwrap(), (Digest::of(b"abc"), 3));
        let json = serde_json::to_string(&Digest::of(b"abc")).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), Digest::of(b"abc"));
    }

    #[test]
    fn refuses_what_could_be_a_path() {
        let good = Digest::of(b"").to_string();
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "md5:00", &good[..70], &good.to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(format!("{good}0").parse::<Digest>().is_err());
    }
}
