//! Linux boot images (Linux Documentation/arch/x86/boot.rst).
//!
//! ```text
//!  0      0x1f1     0x202 + [0x201]   (setup_sects + 1) * 512                          + syssize * 16
//!  ├───────┼── header ──┼───────────────┼── decompressor ──┬── payload ──────┬───────────┤
//!                                       0        payload_offset     + payload_length
//! ```

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::source::Source;
use super::{Entry, Error, Protocol};
use crate::arch::x86_64::{layout, memory_map};
use crate::memory::Memory;

const SECTOR: u64 = 512;
const HEADER: u64 = 0x1f1;
/// The length of the header from 0x202 on is in the byte before.
const HEADER_LEN: u64 = 0x201;
const MAGIC: u32 = 0x5372_6448;
/// Protocol 2.08 tells where the payload is.
const WITH_PAYLOAD: u16 = 0x0208;
/// Protocol 2.12 tells whether there is a 64-bit entry.
const WITH_XLOADFLAGS: u16 = 0x020c;
/// The 64-bit entry, from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Larger than any kernel.
const SIZE_MAX: u64 = 512 << 20;
const MIB: u64 = 1 << 20;

/// A boot image: header and the place of its parts in the file, checked to lie within it.
#[derive(Clone, Debug, PartialEq)]
pub struct BzImage {
    header: setup_header,
    /// Where the protected-mode code starts and how long it is.
    code: (u64, u64),
    /// Where the payload starts and how long it is.
    payload: Option<(u64, u64)>,
}

impl BzImage {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The file is cut off or its header is damaged.
    pub fn parse(source: &Source) -> Result<Self, Error> {
        let header = header(source)?;
        let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(header.syssize) * 16;
        if !(ENTRY_64..=SIZE_MAX).contains(&size) {
            return Err(Error::Damaged { what: "the size of its code is wrong" });
        }
        whole("protected-mode code", start + size, source.len())?;
        let payload = match (header.payload_offset, header.payload_length) {
            _ if header.version < WITH_PAYLOAD => None,
            (_, 0) => None,
            (offset, length) if u64::from(offset) + u64::from(length) > size => {
                return Err(Error::Damaged { what: "its payload passes the end of its code" });
            }
            (offset, length) => Some((start + u64::from(offset), length.into())),
        };
        Ok(BzImage { header, code: (start, size), payload })
    }

    /// The compressed kernel, if the header tells where it is.
    pub fn payload(&self, source: &Source) -> Result<Option<Vec<u8>>, Error> {
        let Some((start, length)) = self.payload else { return Ok(None) };
        let mut payload = vec![0; length as usize];
        source.read_at(start, &mut payload).map_err(Error::Read)?;
        Ok(Some(payload))
    }

    /// Copies the image into `memory` so that it decompresses itself.
    ///
    /// # Errors
    /// It has no 64-bit entry, does not fit or cannot be read.
    pub fn load(&self, source: &Source, memory: &Memory) -> Result<Entry, Error> {
        if self.header.version < WITH_XLOADFLAGS || self.header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::Architecture { found: "32-bit x86".into() });
        }
        let (offset, size) = self.code;
        let start = self.header.pref_address;
        let room = size.max(self.header.init_size.into());
        let end =
            start.checked_add(room).filter(|&end| start >= layout::HIGH_RAM.0 && end <= layout::HOLE_START);
        let end = end.ok_or(Error::Segment { start, size: room, problem: "cannot be there" })?;
        if end > memory_map::low_ram_end(memory) {
            return Err(Error::Memory { needed_mib: end.div_ceil(MIB) });
        }
        source.copy_to(memory, GuestAddress(start), offset, size).map_err(Error::Read)?;
        let mut header = Box::new(self.header);
        header.code32_start = start as u32;
        header.loadflags |= LOADED_HIGH;
        let entry = GuestAddress(start + ENTRY_64);
        Ok(Entry { protocol: Protocol::BzImage { entry, header }, end: GuestAddress(end) })
    }
}

/// Reads the header; what an older protocol does not have is zero.
fn header(source: &Source) -> Result<setup_header, Error> {
    let size = size_of::<setup_header>();
    whole("boot header", HEADER + size as u64, source.len())?;
    let mut header: setup_header = source.object(HEADER).map_err(Error::Read)?;
    if header.header != MAGIC {
        return Err(Error::Damaged { what: "its header is not marked" });
    }
    let len: u8 = source.object(HEADER_LEN).map_err(Error::Read)?;
    let used = (HEADER_LEN + 1 - HEADER) as usize + usize::from(len);
    header.as_mut_slice()[used.min(size)..].fill(0);
    Ok(header)
}

fn whole(what: &'static str, end: u64, len: u64) -> Result<(), Error> {
    match end > len {
        true => Err(Error::Truncated { what, end, len }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
