//! Identity page tables for a kernel that is entered in 64-bit mode (Intel SDM volume 3, 5.5: 4-level paging).
//!
//! As few tables as possible: every one is a page that the boot touches.
//!
//! ```text
//!  0x9000 PML4 ─► 0xa000 PDPT ─┬─ 1 GiB pages, if the CPU has them: that was all
//!                              └─ else a page directory of 2 MiB pages for each GiB, 0xb000 to 0xe000
//! ```

use vm_memory::GuestAddress;

use super::layout;

const PAGE: u64 = 0x1000;
const GIB: u64 = 1 << 30;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// Page directories that fit before [`layout::COMMAND_LINE`] and reach the end of the 32-bit space.
const DIRECTORIES: u64 = 4;

/// The (address, bytes) to write so that at least the addresses below `end` are mapped to themselves.
pub fn identity(end: u64, gib_pages: bool) -> Vec<(GuestAddress, Vec<u8>)> {
    let (pml4, pdpt) = (layout::PAGE_TABLES, GuestAddress(layout::PAGE_TABLES.0 + PAGE));
    let mut tables = vec![(pml4, (pdpt.0 | PRESENT_WRITABLE).to_le_bytes().to_vec())];
    if gib_pages {
        let entries = (0..DIRECTORIES).map(|gib| (gib * GIB) | PRESENT_WRITABLE | LARGE);
        tables.push((pdpt, bytes(entries)));
        return tables;
    }
    let directories = end.div_ceil(GIB).clamp(1, DIRECTORIES);
    let directory = |gib: u64| pdpt.0 + PAGE * (1 + gib);
    tables.push((pdpt, bytes((0..directories).map(|gib| directory(gib) | PRESENT_WRITABLE))));
    for gib in 0..directories {
        let entries = (0..512).map(|page| (gib * GIB + (page << 21)) | PRESENT_WRITABLE | LARGE);
        tables.push((GuestAddress(directory(gib)), bytes(entries)));
    }
    tables
}

fn bytes(entries: impl Iterator<Item = u64>) -> Vec<u8> {
    entries.flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a CPU does.
    fn translate(tables: &[(GuestAddress, Vec<u8>)], address: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES.0;
        for shift in [39, 30, 21] {
            let index = (address >> shift & 511) as usize * 8;
            let (_, bytes) = tables.iter().find(|(at, _)| at.0 == table)?;
            let entry = u64::from_le_bytes(bytes.get(index..index + 8)?.try_into().unwrap());
            let frame = entry & 0x000f_ffff_ffff_f000;
            match (entry & PRESENT_WRITABLE == PRESENT_WRITABLE, entry & LARGE != 0) {
                (false, _) => return None,
                (true, true) => return Some(frame + (address & ((1 << shift) - 1))),
                (true, false) => table = frame,
            }
        }
        None
    }

    #[test]
    fn addresses_are_mapped_to_themselves() {
        for gib_pages in [false, true] {
            let tables = identity(3 * GIB + 1, gib_pages);
            for address in [0, 0x1234, 0x20_0000, GIB - 1, GIB, 2 * GIB + 0x12_3456, 3 * GIB, 4 * GIB - 1] {
                assert_eq!(translate(&tables, address), Some(address), "{address:#x}");
            }
            assert_eq!(translate(&tables, 4 * GIB), None);
        }
    }

    #[test]
    fn only_what_is_needed_is_written() {
        assert_eq!(identity(u64::MAX, true).len(), 2);
        assert_eq!(identity(0, false).len(), 3);
        assert_eq!(identity(GIB, false).len(), 3);
        assert_eq!(identity(u64::MAX, false).len(), 6);
        for (at, bytes) in identity(u64::MAX, false) {
            assert!(at.0 + bytes.len() as u64 <= layout::COMMAND_LINE.0 && bytes.len() as u64 <= PAGE);
        }
    }
}
