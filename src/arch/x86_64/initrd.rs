//! The initial RAM disk: a file that is put into guest memory as it is.

use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::kernel::source::Source;
use super::{Error, layout};
use crate::memory::Memory;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;

/// An initial RAM disk, open.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    source: Source,
    /// An archive behind that of the file.
    more: Vec<u8>,
}

impl Initrd {
    /// Opens the file at `path`. Its contents are read when the machine boots.
    ///
    /// # Errors
    /// [`Error::Initrd`] if it does not open or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path).map_err(Self::refused(path))?;
        Ok(Initrd { path: path.into(), source, more: Vec::new() })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self.more.len() as u64 {
            0 => self.source.len(),
            more => self.source.len().next_multiple_of(4) + more,
        }
    }

    /// Puts another archive behind that of the file: the kernel unpacks both (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
    pub fn append(&mut self, archive: Vec<u8>) {
        self.more = archive;
    }

    /// Copies it to guest memory at `address`.
    pub(super) fn load(&self, memory: &Memory, address: u64) -> Result<(), Error> {
        let len = self.source.len();
        self.source.copy_to(memory, GuestAddress(address), 0, len).map_err(Self::refused(&self.path))?;
        let behind = GuestAddress(address + len.next_multiple_of(4));
        let gap = (behind.0 - address - len) as usize;
        let written = memory
            .write_slice(&[0; 4][..gap], GuestAddress(address + len))
            .and_then(|()| memory.write_slice(&self.more, behind))
            .map_err(io::Error::other);
        written.map_err(Self::refused(&self.path))
    }

    fn refused(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Initrd { path, source }
    }
}

/// Where `size` bytes go: as high as possible, on a page boundary, above the kernel's end, below `limit` and
/// inside the RAM that ends at `ram_end`.
pub(super) fn place(size: u64, kernel_end: u64, limit: u64, ram_end: u64) -> Result<u64, Error> {
    let size_mib = size.div_ceil(MIB);
    let ceiling = limit.min(layout::HOLE_START);
    let lowest = kernel_end.next_multiple_of(PAGE);
    let needed = lowest.checked_add(size.next_multiple_of(PAGE)).filter(|&needed| needed <= ceiling);
    let needed = needed.ok_or(Error::InitrdLimit { size_mib, limit: ceiling })?;
    if needed > ram_end {
        return Err(Error::InitrdSize { size_mib, needed_mib: needed.div_ceil(MIB) });
    }
    Ok((ceiling.min(ram_end) - size) & !(PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_as_high_as_possible() {
        assert_eq!(place(1, 0x20_0000, u64::MAX, 128 * MIB).unwrap(), 128 * MIB - PAGE);
        assert_eq!(place(PAGE + 1, 0x20_0000, 0x7fff_ffff, 3 << 30).unwrap(), 0x7fff_e000);
        assert_eq!(place(5 * MIB, 0x20_0000, u64::MAX, 1 << 40).unwrap(), layout::HOLE_START - 5 * MIB);
    }

    #[test]
    fn fits_to_the_last_page() {
        assert_eq!(place(MIB, 2 * MIB, u64::MAX, 3 * MIB).unwrap(), 2 * MIB);
        let error = place(MIB + 1, 2 * MIB, u64::MAX, 3 * MIB).unwrap_err();
        assert!(matches!(error, Error::InitrdSize { size_mib: 2, needed_mib: 4 }), "{error}");
    }

    #[test]
    fn a_larger_machine_does_not_help_against_the_kernels_limit() {
        for size in [3 << 30, u64::MAX - PAGE] {
            assert!(matches!(
                place(size, 2 * MIB, u64::MAX, 1 << 40).unwrap_err(),
                Error::InitrdLimit { .. }
            ));
        }
    }
}
