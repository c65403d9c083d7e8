//! Entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's random number generator.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::warn;
use serde::{Deserialize, Serialize};

use super::{Context, Error, Lent, VirtioDevice, Violation};
use crate::options::{self, Options};
use crate::snapshot::{self, Persist, Saved};
use crate::sys::random;

/// Where the entropy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A file that gives random bytes. While it has none, the guest gets those of the host's kernel.
    #[serde(default = "urandom")]
    pub source: PathBuf,
}

fn urandom() -> PathBuf {
    "/dev/urandom".into()
}

impl Config {
    /// Whether it is a generator of the host's: its bytes are new each time, and nobody's secret.
    pub fn is_generator(&self) -> bool {
        ["/dev/urandom", "/dev/random", "/dev/hwrng"].iter().any(|generator| self.source == Path::new(generator))
    }
}

impl Default for Config {
    fn default() -> Self {
        Config { source: urandom() }
    }
}

impl FromStr for Config {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        match Options::parse(text, &[])?.first {
            "" => Err(options::Error::Missing { what: "source of entropy" }),
            source => Ok(Config { source: source.into() }),
        }
    }
}

impl super::Config for Config {
    fn open(&self, _context: &Context) -> Result<Box<dyn VirtioDevice>, Error> {
        let open = || {
            // Neither a pipe nor a slow generator keeps the event loop waiting.
            let source = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.source)?;
            if source.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(source) }
        };
        let source = open().map_err(|source: io::Error| Error {
            device: format!("entropy source {}", self.source.display()),
            source: source.into(),
        })?;
        Ok(Box::new(Rng { source, path: self.source.clone(), dry: false }))
    }
}

struct Rng {
    source: File,
    path: PathBuf,
    /// The source had nothing once, and that was told.
    dry: bool,
}

impl Rng {
    /// Puts random bytes at the start of `bytes`, one at least if there is room (5.4.6.1); returns how many.
    fn fill(&mut self, bytes: &mut [u8]) -> usize {
        let got = self.source.read(bytes).unwrap_or(0);
        if got > 0 || bytes.is_empty() {
            return got;
        }
        if !std::mem::replace(&mut self.dry, true) {
            warn!("{} has no random bytes: the guest gets those of the host's kernel", self.path.display());
        }
        random::fill(bytes).map_or(0, |()| bytes.len())
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn kick(&mut self, index: usize, lent: &mut Lent) -> Result<(), Violation> {
        while let Some(chain) = lent.take(index)? {
            // One page a request is plenty: a driver that wants more asks again.
            let mut bytes = [0; 4096];
            let wanted = chain.writable.len().min(bytes.len());
            let got = self.fill(&mut bytes[..wanted]);
            chain.writable.write_at(0, &bytes[..got]);
            lent.give(index, chain.head, got as u32)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

impl Persist for Rng {
    fn save(&self) -> Saved {
        Saved::pack("virtio-rng", 1, &())
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        saved.unpack::<()>("virtio-rng", 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::mock::{self, Driver, hostile};

    fn device() -> Box<dyn VirtioDevice> {
        super::super::Config::open(&Config::default(), &mock::context()).unwrap()
    }

    fn works(driver: &mut Driver) {
        let reply = driver.request(0, &[], 64);
        assert_eq!(reply.len, 64);
        assert!(reply.bytes.iter().any(|&byte| byte != 0), "64 random bytes that are all zero");
    }

    #[test]
    fn gives_a_page_at_most() {
        let mut driver = Driver::started(device());
        works(&mut driver);
        assert!(driver.interrupted());
        assert_eq!(driver.request(0, &[], 10_000).len, 4096);
        assert_eq!(driver.request(0, &[b"not wanted"], 0).len, 0);
    }

    #[test]
    fn a_source_without_bytes_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let short = directory.path().join("short");
        std::fs::write(&short, [7; 10]).unwrap();
        for source in [PathBuf::from("/dev/null"), short] {
            let open = super::super::Config::open(&Config { source }, &mock::context());
            let mut driver = Driver::started(open.unwrap());
            driver.request(0, &[], 10);
            works(&mut driver);
        }
    }

    #[test]
    fn survives_a_hostile_driver() {
        hostile::suite(device, works);
    }
}
