//! Huge pages: guest RAM begins where one can, and they are made again of small ones (madvise(2), MADV_COLLAPSE, Linux 6.1).
//!
//! What a guest writes while a copy of its memory is shared with another process breaks huge pages up, and each later copy
//! has 512 times as many entries of page tables to make.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::Memory;
use crate::sys::pagemap::Pagemap;
use crate::sys::ranges::append;

/// Bytes of a huge page.
pub const HUGE: usize = 2 << 20;

/// How often a mapping at a multiple of that is tried: other threads map and unmap as well.
const ATTEMPTS: usize = 4;

/// Maps `size` bytes at an address that huge pages can begin at. Otherwise KVM gives the guest none: host and guest-physical
/// address must be the same within one. Linux aligns mappings since 6.7, later only those of whole huge pages.
pub fn aligned(size: usize, flags: libc::c_int) -> Result<MmapRegion, MmapRegionError> {
    let map = || {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | flags;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        MmapRegionBuilder::new(size).with_mmap_prot(protection).with_mmap_flags(flags).build()
    };
    let is_aligned = |mapping: &MmapRegion| (mapping.as_ptr() as usize).is_multiple_of(HUGE);
    let mut mapping = map()?;
    for _ in 0..ATTEMPTS {
        if is_aligned(&mapping) {
            break;
        }
        drop(mapping);
        // The kernel takes the highest hole that is large enough: this one, unless another thread has changed what is mapped.
        let hole = Hole::new(size);
        mapping = map()?;
        drop(hole);
    }
    // A guest with small pages is slower and runs as well.
    Ok(mapping)
}

/// Address space that nothing else is mapped in, around an aligned hole.
struct Hole {
    start: usize,
    before: usize,
    size: usize,
}

impl Hole {
    fn new(size: usize) -> Option<Self> {
        let (len, flags) = (size + HUGE, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a fresh mapping, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let before = (start as usize).next_multiple_of(HUGE) - start as usize;
        let hole = Hole { start: start as usize, before, size };
        hole.unmap(before, size);
        Some(hole)
    }

    fn unmap(&self, offset: usize, len: usize) {
        // SAFETY: this is part of what was mapped in `new`, each part is given back once, and nobody has a pointer into it.
        unsafe { libc::munmap((self.start + offset) as *mut libc::c_void, len) };
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        self.unmap(0, self.before);
        self.unmap(self.before + self.size, HUGE - self.before);
    }
}

/// Has the kernel make huge pages of small ones wherever at least half of a huge page is in memory and nothing of it is swapped out,
/// which it would bring back: the host has no memory to spare. It does so while the guest runs, copies each and changes no contents.
/// What it refuses stays as it is: pages of files, or all when no huge page is free.
pub fn join_small_pages(memory: &Memory) -> io::Result<()> {
    let pagemap = Pagemap::open(std::process::id())?;
    for region in memory.iter() {
        let start = region.as_ptr() as usize;
        let all = start..start + region.len() as usize;
        let (small, swapped) = (pagemap.small(all.clone())?, pagemap.swapped(all.clone())?);
        for pages in joinable(&small, &swapped, all) {
            join(region, pages.start - start, pages.len())?;
        }
    }
    Ok(())
}

/// The huge pages within `all` of which at least half consists of these `small` pages and nothing is `swapped`, as ranges.
fn joinable(small: &[Range<usize>], swapped: &[Range<usize>], all: Range<usize>) -> Vec<Range<usize>> {
    let mut there = BTreeMap::<usize, usize>::new();
    for range in small {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / HUGE + 1) * HUGE);
            *there.entry(at / HUGE * HUGE).or_default() += end - at;
            at = end;
        }
    }
    for range in swapped {
        for huge in (range.start / HUGE * HUGE..range.end).step_by(HUGE) {
            there.remove(&huge);
        }
    }
    let mut joinable = Vec::new();
    there
        .into_iter()
        .filter(|&(start, bytes)| bytes >= HUGE / 2 && start >= all.start && start + HUGE <= all.end)
        .for_each(|(start, _)| append(&mut joinable, start..start + HUGE));
    joinable
}

/// Joins the pages of a part of guest RAM. Fails if the host has no huge page.
fn join(region: &GuestRegionMmap, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: the caller has the range from this mapping, whose contents stay as they are.
    let joined =
        unsafe { libc::madvise(region.as_ptr().wrapping_add(offset).cast(), len, libc::MADV_COLLAPSE) };
    match io::Error::last_os_error() {
        error if joined < 0 && error.raw_os_error() == Some(libc::ENOMEM) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Pages, allocate};
    use crate::sys::frozen::{Frozen, PAGE};

    #[test]
    fn ram_begins_where_huge_pages_can() {
        // Sizes that the kernel itself gives no such address for, and something small between them.
        let sizes = [127, 129, 33, 257, 511].map(|mib: u64| mib << 20);
        let memories = sizes.map(|size| {
            let memory = allocate(&[(GuestAddress(0), size)], Pages::Transparent).unwrap();
            let between = MmapRegionBuilder::<()>::new(12288).with_mmap_prot(libc::PROT_READ);
            (memory, between.with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE).build().unwrap())
        });
        for (memory, _) in &memories {
            let region = memory.iter().next().unwrap();
            assert_eq!(region.as_ptr() as usize % HUGE, 0, "{} MiB", region.size() >> 20);
        }
    }

    #[test]
    fn half_of_a_huge_page_suffices_and_less_does_not() {
        let huge = |number: usize| number * HUGE;
        let small = [
            huge(1)..huge(1) + HUGE / 2,
            huge(2) + HUGE / 2..huge(4),
            huge(5)..huge(5) + HUGE / 2 - PAGE,
            huge(6)..huge(6) + HUGE / 4,
            huge(7) - HUGE / 4..huge(7),
            huge(8)..huge(9),
        ];
        assert_eq!(
            joinable(&small, &[], huge(1)..huge(8) + HUGE),
            [huge(1)..huge(4), huge(6)..huge(7), huge(8)..huge(9)]
        );
        assert_eq!(
            joinable(&small, &[], huge(1) + PAGE..huge(9) - PAGE),
            [huge(2)..huge(4), huge(6)..huge(7)]
        );
    }

    #[test]
    fn nothing_is_brought_back() {
        let huge = |number: usize| number * HUGE;
        let small = [huge(1)..huge(2), huge(2)..huge(9)];
        let swapped = [huge(1)..huge(1) + PAGE, huge(3) - PAGE..huge(4) + PAGE, huge(8) - PAGE..huge(8)];
        assert_eq!(joinable(&small, &swapped, huge(1)..huge(9)), [huge(5)..huge(7), huge(8)..huge(9)]);
    }

    #[test]
    fn what_writes_beside_a_copy_broke_up_is_joined_and_reads_the_same() {
        let memory = allocate(&[(GuestAddress(0), 16 << 20)], Pages::Transparent).unwrap();
        let page = |number: u64| GuestAddress(number * PAGE as u64);
        let number = |page: u64| page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..4096).for_each(|at| memory.write_obj(number(at), page(at)).unwrap());
        let small = || {
            let start = memory.iter().next().unwrap().as_ptr() as usize;
            let pagemap = Pagemap::open(std::process::id()).unwrap();
            let small = pagemap.small(start..start + (16 << 20));
            small.map(|small| {
                joinable(&small, &[], start..start + (16 << 20))
                    .iter()
                    .map(|range| range.len())
                    .sum::<usize>()
            })
        };
        let frozen = Frozen::fork().unwrap();
        (0..4096).step_by(100).for_each(|at| memory.write_obj(!number(at), page(at)).unwrap());
        drop(frozen);
        let Ok(before) = small() else {
            return eprintln!("this kernel does not tell which pages are small");
        };
        assert!(before >= 14 << 20, "{before} bytes of small pages");
        match join_small_pages(&memory) {
            Ok(()) => assert_eq!(small().unwrap(), 0),
            Err(error) => eprintln!("this host has no huge page: {error}"),
        }
        for at in 0..4096 {
            let wanted = if at % 100 == 0 { !number(at) } else { number(at) };
            assert_eq!(memory.read_obj::<u64>(page(at)).unwrap(), wanted);
        }
    }
}
