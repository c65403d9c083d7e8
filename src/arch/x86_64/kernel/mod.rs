//! The guest kernel: what kind of file it is, and putting it into guest memory.
//!
//! ```text
//!                    ┌─ ELF ─────────────────────────────────────────┐
//!  file ─ identify ──┤                                               ├─► segments copied straight from the file
//!                    └─ bzImage ─ payload ─ decompress ─ (cache) ─ ELF    into guest memory
//!                          └─ not decompressible: the kernel's own decompressor runs in the guest
//! ```

pub mod elf;
mod error;
#[cfg(test)]
mod fake;
mod identify;
pub(super) mod source;

pub use error::Error;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use self::elf::Elf;
use self::source::Source;
use crate::memory::Memory;

/// Which entry is taken when the kernel has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// PVH when the kernel has the note, else the 64-bit entry.
    #[default]
    Pvh,
    /// The 64-bit entry of Linux.
    Linux64,
}

/// How the kernel takes over.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// In 64-bit mode, with the zero page.
    Linux64 {
        /// First instruction.
        entry: GuestAddress,
    },
    /// In 32-bit mode, with PVH start information.
    Pvh {
        /// First instruction.
        entry: GuestAddress,
    },
    /// In 64-bit mode, with the zero page and the header of the file: the kernel decompresses itself.
    BzImage {
        /// First instruction.
        entry: GuestAddress,
        /// The file's own header.
        header: Box<setup_header>,
    },
}

/// A kernel in guest memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// How it takes over.
    pub protocol: Protocol,
    /// First address behind all that it occupies at its start.
    pub end: GuestAddress,
}

/// A kernel file, open and understood. It can be loaded any number of times.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    source: Source,
    image: Image,
}

/// What the source holds.
#[derive(Debug)]
enum Image {
    Elf(Elf),
}

impl Kernel {
    /// Opens the kernel at `path` and finds out what it is.
    ///
    /// # Errors
    /// [`super::Error::Kernel`], whose source says what is wrong with the file.
    pub fn open(path: &Path, _cache: Option<&Path>) -> Result<Self, super::Error> {
        let refused = |source| super::Error::Kernel { path: path.into(), source };
        let source = open(path).map_err(refused)?;
        let image = Self::understand(&source).map_err(refused)?;
        Ok(Kernel { path: path.into(), source, image })
    }

    /// Copies the kernel into `memory`, which must read as zeroes where the kernel goes.
    ///
    /// # Errors
    /// [`super::Error::Kernel`] if it does not fit or the file cannot be read.
    pub fn load(&self, memory: &Memory, preference: Preference) -> Result<Entry, super::Error> {
        let entry = match &self.image {
            Image::Elf(elf) => elf.load(&self.source, memory, preference),
        };
        entry.map_err(|source| super::Error::Kernel { path: self.path.clone(), source })
    }

    fn understand(source: &Source) -> Result<Image, Error> {
        let mut head = [0; identify::HEAD];
        let len = source.read_some(&mut head).map_err(Error::Read)?;
        match identify::identify(&head[..len])? {
            identify::Format::Elf => Ok(Image::Elf(Elf::parse(source)?)),
            identify::Format::BzImage => Err(Error::NotKernel { looks: "a bzImage" }),
        }
    }
}

/// Opens without waiting, should the path be a pipe.
fn open(path: &Path) -> Result<Source, Error> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(Error::Open)?;
    Source::file(file).map_err(Error::Open)
}
