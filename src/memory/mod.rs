//! Guest RAM: how it is mapped in this process, and the pieces of it that are lent to I/O.

mod buffers;
mod huge;
pub mod image;
mod vectored;

pub use buffers::Buffers;
pub use huge::join_small_pages;
pub use vectored::MAX_PIECES;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// All RAM of one guest: regions sorted by guest-physical address.
pub type Memory = GuestMemoryMmap<()>;

/// What kind of host pages back guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Ordinary pages; the host may merge them into transparent huge pages.
    #[default]
    Transparent,
    /// Ordinary pages that stay small until [`allow_huge_pages`]: for single pages here and there, of which each would
    /// take a whole huge page and the time to clear it.
    Small,
    /// Pages of hugetlbfs, 2 MiB each, which the host must have reserved.
    Huge2M,
}

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused to map `mib` MiB.
    #[error("Cannot map {mib} MiB of guest memory")]
    Map {
        /// All guest RAM in MiB.
        mib: u64,
        /// The host's answer.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The host has too few huge pages for `mib` MiB.
    #[error(
        "Cannot map {mib} MiB of guest memory in huge pages: reserve them, for example with `sysctl vm.nr_hugepages={pages}`"
    )]
    Huge {
        /// All guest RAM in MiB.
        mib: u64,
        /// How many huge pages that is.
        pages: u64,
        /// The host's answer.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A region is empty, overlaps another or passes the end of the address space.
    #[error("Guest memory layout is not valid")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// A descriptor points outside guest RAM.
    #[error("Guest buffer at {address:#x} of {len} bytes is outside guest memory")]
    OutOfRange {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// Maps fresh, zeroed, private guest RAM over `ranges` of (address, bytes). Nothing is
/// touched yet: the host may overcommit, but for huge pages.
pub fn allocate(ranges: &[(GuestAddress, u64)], pages: Pages) -> Result<Memory, Error> {
    // Huge pages are reserved at once: where one is missing later, the first touch kills the process.
    let flags = match pages {
        Pages::Transparent | Pages::Small => libc::MAP_NORESERVE,
        Pages::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
    };
    let all = ranges.iter().fold(0u64, |sum, &(_, size)| sum.saturating_add(size));
    let mut regions = Vec::with_capacity(ranges.len());
    for &(start, size) in ranges {
        let mapping = huge::aligned(size as usize, flags).map_err(|source| match pages {
            Pages::Transparent | Pages::Small => Error::Map { mib: all >> 20, source },
            Pages::Huge2M => Error::Huge { mib: all >> 20, pages: all.div_ceil(huge::HUGE as u64), source },
        })?;
        match pages {
            Pages::Transparent => advise(&mapping, libc::MADV_HUGEPAGE),
            Pages::Small => advise(&mapping, libc::MADV_NOHUGEPAGE),
            Pages::Huge2M => {}
        }
        regions.push(
            GuestRegionMmap::new(mapping, start)
                .ok_or(Error::OutOfRange { address: start.0, len: size as usize })?,
        );
    }
    Memory::from_regions(regions).map_err(Error::Layout)
}

/// Gives every page back to the host; the guest reads zeroes afterwards, also where files were mapped. Used when a
/// machine restarts in place.
pub fn clear(memory: &Memory) -> io::Result<()> {
    for region in memory.iter() {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = region.flags() | libc::MAP_FIXED;
        // SAFETY: the range is exactly one live mapping of ours, guest RAM to which no Rust reference exists, and it
        // stays mapped as it was first mapped.
        let mapped = unsafe { libc::mmap(region.as_ptr().cast(), region.size(), protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if region.flags() & libc::MAP_HUGETLB == 0 {
            advise(region, libc::MADV_HUGEPAGE);
        }
    }
    Ok(())
}

/// From now on the host may use huge pages where nothing has been touched.
pub fn allow_huge_pages(memory: &Memory) {
    memory.iter().for_each(|region| advise(region, libc::MADV_HUGEPAGE));
}

/// Puts `len` bytes of `file` from `at` on in place of guest RAM at `offset` of a region, copy-on-write. All are
/// multiples of a page. A page that is touched brings those next to it, and not the whole 2 MiB around it: the host would read
/// as much from the disk for each.
fn map_file(region: &GuestRegionMmap, offset: u64, file: &File, at: u64, len: u64) -> io::Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > region.size() as u64) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let (start, fd) = (region.as_ptr().wrapping_add(offset as usize), file.as_raw_fd());
    // SAFETY: the range lies in one mapping of ours, by the check above; what was there is guest RAM, to which no
    // Rust reference exists, and it stays mapped with the same protection.
    let mapped = unsafe { libc::mmap(start.cast(), len as usize, protection, flags, fd, at as libc::off_t) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range was just mapped, and the advice changes no contents.
    unsafe { libc::madvise(mapped, len as usize, libc::MADV_NOHUGEPAGE) };
    Ok(())
}

/// Reads `len` bytes of `file` from `at` on into guest RAM at `offset` of a region.
fn read_file(region: &GuestRegionMmap, offset: u64, file: &File, at: u64, len: usize) -> io::Result<()> {
    let slice = region.get_slice(MemoryRegionAddress(offset), len).map_err(io::Error::other)?;
    let mut done = 0;
    while done < len {
        let rest = slice.offset(done).map_err(io::Error::other)?;
        let to = rest.ptr_guard_mut();
        // SAFETY: `rest` is guest RAM that stays mapped while `to` lives, and `len - done` bytes long.
        let read = unsafe {
            libc::pread(file.as_raw_fd(), to.as_ptr().cast(), len - done, (at + done as u64) as libc::off_t)
        };
        match read {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count as usize,
        }
    }
    Ok(())
}

/// Tells the host what to do with a mapping. Advice may be refused: nothing depends on it.
fn advise(mapping: &vm_memory::MmapRegion<()>, advice: libc::c_int) {
    // SAFETY: the range is exactly one live mapping of ours, and none of the advice given here changes contents.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
}
