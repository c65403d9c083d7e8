//! Memory: the map that the VMM passed, device registers, pages to give to devices, and RAM above 4 GiB.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;

#[derive(Clone, Copy, PartialEq)]
pub enum RegionKind {
    Ram,
    Reserved,
}

/// One entry of the memory map.
#[derive(Clone, Copy)]
pub struct Region {
    pub start: u64,
    pub size: u64,
    pub kind: RegionKind,
}

/// Memory that others change as well: device registers, or RAM that devices read and write. Each access
/// is one instruction of the size that its name says.
#[derive(Clone, Copy)]
pub struct Shared(u64);

macro_rules! access {
    ($read:ident, $write:ident, $integer:ty) => {
        pub fn $read(self, offset: u64) -> $integer {
            // SAFETY: `new` promises that no object of the program is here.
            unsafe { ((self.0 + offset) as *const $integer).read_volatile() }
        }

        pub fn $write(self, offset: u64, value: $integer) {
            // SAFETY: as above.
            unsafe { ((self.0 + offset) as *mut $integer).write_volatile(value) }
        }
    };
}

impl Shared {
    /// # Safety
    /// From `address` on there is memory, mapped to itself, which the program reaches through `Shared`
    /// only, as far as the offsets go that are used with it.
    pub const unsafe fn new(address: u64) -> Shared {
        Shared(address)
    }

    pub fn address(self) -> u64 {
        self.0
    }

    /// The part from `offset` on.
    pub fn at(self, offset: u64) -> Shared {
        Shared(self.0 + offset)
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);

    /// Fills `size` bytes, a multiple of 8, with numbers that follow from `seed`.
    pub fn fill(self, size: u64, seed: u64) {
        for offset in (0..size).step_by(8) {
            self.write64(offset, pattern(seed, offset));
        }
    }

    /// The offset of the first 8 bytes that are not what [`fill`](Self::fill) wrote.
    pub fn first_difference(self, size: u64, seed: u64) -> Option<u64> {
        (0..size).step_by(8).find(|&offset| self.read64(offset) != pattern(seed, offset))
    }
}

fn pattern(seed: u64, offset: u64) -> u64 {
    (seed.wrapping_add(offset)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub const PAGE: u64 = 4096;
const POOL_PAGES: u64 = 96;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[u8; (PAGE * POOL_PAGES) as usize]>);

// SAFETY: `pages` gives each page out once.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([0; (PAGE * POOL_PAGES) as usize]));
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Zeroed memory of `count` pages, for ever.
pub fn pages(count: u64) -> Shared {
    let first = TAKEN.fetch_add(count, Ordering::Relaxed);
    assert!(first + count <= POOL_PAGES);
    // SAFETY: the pages from `first` on are inside the pool and nobody else has them; they are zero
    // because the image's uninitialised data is.
    unsafe { Shared::new(POOL.0.get() as u64 + first * PAGE) }
}

/// Takes all pages back and zeroes them.
///
/// # Safety
/// Nobody uses what [`pages`] has given out: no driver, no device, no page table.
pub unsafe fn release_pages() {
    let size = TAKEN.load(Ordering::Relaxed) * PAGE;
    // SAFETY: the pages are inside the pool and, by the caller's promise, free.
    unsafe { POOL.0.get().cast::<u8>().write_bytes(0, size as usize) };
    TAKEN.store(0, Ordering::Relaxed);
}

/// Makes the memory from `start` on reachable. The page tables map everything above 4 GiB by pages of 1
/// GiB; a CPU without these gets tables of 2 MiB pages here.
pub fn map(start: u64, size: u64) {
    unsafe extern "C" {
        static mut pdpt: [u64; 512];
    }
    const PAGE_SIZE: u64 = 1 << 7;
    if cpu::cpuid(0x8000_0001, 0)[3] & 1 << 26 != 0 {
        return;
    }
    for gib in start.max(4 << 30) >> 30..(start + size).div_ceil(1 << 30).min(512) {
        // SAFETY: only this CPU changes the tables; `gib` is below 512.
        unsafe {
            let entry = (&raw mut pdpt[gib as usize]).cast::<u64>();
            if entry.read_volatile() & PAGE_SIZE == 0 {
                continue;
            }
            let table = pages(1);
            for index in 0..512 {
                table.write64(index * 8, gib << 30 | index << 21 | 0xe7);
            }
            entry.write_volatile(table.address() | 0x27);
            core::arch::asm!("mov {scratch}, cr3", "mov cr3, {scratch}", scratch = out(reg) _);
        }
    }
}
