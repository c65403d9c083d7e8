//! The guest kernel: what kind of file it is, and putting it into guest memory.
//!
//! ```text
//!                    ┌─ ELF ─────────────────────────────────────────┐
//!  file ─ identify ──┤                                               ├─► segments copied straight from the file
//!                    └─ bzImage ─ payload ─ decompress ─ (cache) ─ ELF    into guest memory
//!                          └─ not decompressible: the kernel's own decompressor runs in the guest
//! ```

mod bzimage;
mod cache;
mod elf;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod identify;
mod payload;
pub(super) mod source;

pub use error::Error;

use std::io;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use self::bzimage::BzImage;
use self::cache::Cache;
use self::elf::Elf;
use self::identify::Format;
use self::payload::Compression;
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
    is_linux: bool,
}

/// What the source holds.
#[derive(Debug)]
enum Image {
    Elf(Elf),
    BzImage(BzImage),
}

impl Kernel {
    /// Opens the kernel at `path` and finds out what it is. What has to be decompressed is kept in the directory
    /// `cache` for the next time, if it can be.
    ///
    /// # Errors
    /// [`super::Error::Kernel`], whose source says what is wrong with the file.
    pub fn open(path: &Path, cache: Option<&Path>) -> Result<Self, super::Error> {
        let (format, source, image) =
            understand(path, cache).map_err(|source| super::Error::Kernel { path: path.into(), source })?;
        Ok(Kernel { path: path.into(), source, image, is_linux: format == Format::BzImage })
    }

    /// Whether the file is surely Linux. An ELF may be anything.
    pub fn is_linux(&self) -> bool {
        self.is_linux
    }

    /// Copies the kernel into `memory`, which must read as zeroes where the kernel goes.
    ///
    /// # Errors
    /// [`super::Error::Kernel`] if it does not fit or the file cannot be read.
    pub fn load(&self, memory: &Memory, preference: Preference) -> Result<Entry, super::Error> {
        let entry = match &self.image {
            Image::Elf(elf) => elf.load(&self.source, memory, preference),
            Image::BzImage(image) => image.load(&self.source, memory),
        };
        entry.map_err(|source| super::Error::Kernel { path: self.path.clone(), source })
    }
}

fn understand(path: &Path, cache: Option<&Path>) -> Result<(Format, Source, Image), Error> {
    let source = Source::open(path).map_err(Error::Open)?;
    let mut head = [0; identify::HEAD];
    let len = source.read_some(&mut head).map_err(Error::Read)?;
    let format = identify::identify(&head[..len])?;
    let (source, image) = match format {
        Format::Elf => {
            let elf = Elf::parse(&source)?;
            (source, Image::Elf(elf))
        }
        Format::BzImage => unpack(source, cache)?,
    };
    Ok((format, source, image))
}

/// Gets the ELF out of a boot image. One that rvmm cannot decompress stays as it is.
fn unpack(source: Source, cache: Option<&Path>) -> Result<(Source, Image), Error> {
    let image = BzImage::parse(&source)?;
    let cache = match cache {
        Some(directory) => open_cache(directory, &source).map_err(Error::Read)?,
        None => None,
    };
    if let Some(known) = cache.as_ref().and_then(|cache| elf(cache.recall()?)) {
        return Ok(known);
    }
    let Some(payload) = image.payload(&source)? else { return Ok((source, Image::BzImage(image))) };
    let Some(compression) = Compression::detect(&payload) else { return Ok((source, Image::BzImage(image))) };
    let cache = cache.map(|cache| (cache, blake3::hash(&payload)));
    if let Some(known) = cache.as_ref().and_then(|(cache, digest)| elf(cache.find(digest)?)) {
        return Ok(known);
    }
    let kernel = match compression.decompress(&payload) {
        Err(Error::Payload { compression, source: error }) => {
            log::warn!(
                "the kernel's {compression} payload is left to its own decompressor, for it does not decompress here: {error}"
            );
            return Ok((source, Image::BzImage(image)));
        }
        kernel => Source::Bytes(kernel?),
    };
    let packed = match (Elf::parse(&kernel), &kernel) {
        (Ok(elf), Source::Bytes(bytes)) => Source::Bytes(elf.pack(bytes)),
        _ => return Ok((source, Image::BzImage(image))),
    };
    let elf = Elf::parse(&packed)?;
    Ok((keep(packed, cache), Image::Elf(elf)))
}

/// The cache for a boot image; without one, everything works and takes longer.
fn open_cache(directory: &Path, image: &Source) -> io::Result<Option<Cache>> {
    let Some(image) = image.metadata()? else { return Ok(None) };
    let refused = |error: &_| log::warn!("Cannot keep the decompressed kernel in {directory:?}: {error}");
    Ok(Cache::open(directory, image).inspect_err(refused).ok())
}

fn elf(source: Source) -> Option<(Source, Image)> {
    let elf = Elf::parse(&source).ok()?;
    Some((source, Image::Elf(elf)))
}

/// Puts a decompressed kernel into the cache, and takes it from there from now on.
fn keep(kernel: Source, cache: Option<(Cache, blake3::Hash)>) -> Source {
    let (Source::Bytes(bytes), Some((cache, digest))) = (&kernel, cache) else { return kernel };
    match cache.store(&digest, bytes) {
        Ok(file) => file,
        Err(error) => {
            log::warn!("Cannot keep the decompressed kernel: {error}");
            kernel
        }
    }
}

#[cfg(test)]
mod tests;
