//! Which guest-physical addresses are RAM and which are reserved (Linux Documentation/arch/x86/boot.rst, `e820_table`).

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::layout;
use crate::memory::Memory;

/// What a range of addresses is; the values are those of e820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RAM for the guest to use.
    Ram = 1,
    /// Not to be used: firmware tables.
    Reserved = 2,
}

/// A range of guest-physical addresses. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// All ranges, sorted by address.
pub fn ranges(memory: &Memory) -> Vec<Range> {
    let mut ranges = Vec::with_capacity(memory.num_regions() + 2);
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        match start {
            0 => {
                let mut add = |start: u64, end: u64, kind| {
                    if end > start {
                        ranges.push(Range { start, size: end - start, kind });
                    }
                };
                add(0, end.min(layout::LOW_RAM_END), Kind::Ram);
                add(layout::LOW_RAM_END, end.min(layout::HIGH_RAM.0), Kind::Reserved);
                add(layout::HIGH_RAM.0, end, Kind::Ram);
            }
            _ => ranges.push(Range { start, size: end - start, kind: Kind::Ram }),
        }
    }
    ranges
}

/// First address after the RAM that starts at address 0.
pub fn low_ram_end(memory: &Memory) -> u64 {
    memory.iter().find(|region| region.start_addr().0 == 0).map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pages, allocate};

    fn map(size: u64) -> Vec<(u64, u64, Kind)> {
        let memory = allocate(&layout::ram_ranges(size), Pages::Transparent).unwrap();
        ranges(&memory).iter().map(|range| (range.start, range.start + range.size, range.kind)).collect()
    }

    #[test]
    fn firmware_tables_are_reserved() {
        let low = [(0, 0xa_0000, Kind::Ram), (0xa_0000, 0x10_0000, Kind::Reserved)];
        assert_eq!(map(64 << 20), [low[0], low[1], (0x10_0000, 64 << 20, Kind::Ram)]);
        assert_eq!(
            map(4 << 30),
            [
                low[0],
                low[1],
                (0x10_0000, layout::HOLE_START, Kind::Ram),
                (1 << 32, (4 << 30) + layout::HOLE_END - layout::HOLE_START, Kind::Ram)
            ]
        );
    }

    #[test]
    fn tiny_memory_has_a_tiny_map() {
        assert_eq!(map(0x1000), [(0, 0x1000, Kind::Ram)]);
        assert_eq!(map(0xb_0000), [(0, 0xa_0000, Kind::Ram), (0xa_0000, 0xb_0000, Kind::Reserved)]);
    }
}
