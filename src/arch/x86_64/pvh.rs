//! PVH start information (Xen docs/misc/pvh.pandoc, `struct hvm_start_info` version 1).

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, GuestAddress};

use super::layout;
use super::memory_map::Range;

/// Marks the structure.
const MAGIC: u32 = 0x336e_c578;
/// Where the list of modules is, behind the structure itself.
const MODULES: u64 = layout::PVH_INFO.0 + 0x40;
/// Where the memory map is, behind the one module there can be.
const MEMORY_MAP: u64 = layout::PVH_INFO.0 + 0x80;

/// The (address, bytes) to write, with the structure itself first. `initrd` is address and size in bytes.
pub fn start_info(
    map: &[Range],
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
) -> Vec<(GuestAddress, Vec<u8>)> {
    let room = (layout::ZERO_PAGE.0 - MEMORY_MAP) as usize / size_of::<hvm_memmap_table_entry>();
    let map = &map[..map.len().min(room)];
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        flags: 0,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    let mut parts = vec![(layout::PVH_INFO, info.as_slice().to_vec())];
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 };
        parts.push((GuestAddress(MODULES), module.as_slice().to_vec()));
    }
    let mut table = Vec::with_capacity(size_of_val(map));
    for range in map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        table.extend_from_slice(entry.as_slice());
    }
    parts.push((GuestAddress(MEMORY_MAP), table));
    parts
}

#[cfg(test)]
mod tests {
    use super::super::memory_map::Kind;
    use super::*;

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn points_to_modules_and_memory() {
        let map = [Range { start: 0x10_0000, size: 0x20_0000, kind: Kind::Ram }];
        let parts = start_info(&map, Some((0x1000_0000, 0x123)), Some(0xe_0000));
        let [(at, info), (modules_at, modules), (map_at, table)] = &parts[..] else { panic!() };
        assert_eq!((at.0, &info[..4], info[4]), (0x6000, &[0x78, 0xc5, 0x6e, 0x33][..], 1));
        assert_eq!((word(info, 16), word(info, 24), word(info, 32)), (modules_at.0, 0x2_0000, 0xe_0000));
        assert_eq!((word(info, 40), word(info, 48)), (map_at.0, 1));
        assert_eq!((word(modules, 0), word(modules, 8)), (0x1000_0000, 0x123));
        assert_eq!((word(table, 0), word(table, 8), word(table, 16)), (0x10_0000, 0x20_0000, 1));
    }

    #[test]
    fn nothing_overlaps_the_zero_page() {
        let map = [Range { start: 0, size: 1, kind: Kind::Reserved }; 1000];
        let parts = start_info(&map, None, None);
        assert_eq!(parts.len(), 2);
        for (at, bytes) in parts {
            assert!(at.0 + bytes.len() as u64 <= layout::ZERO_PAGE.0);
        }
    }
}
