//! Memory: the map that the VMM passed, device registers, pages to give to devices, and RAM above 4 GiB.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

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

/// Device registers at a physical address. Each access is one instruction of the size that its name says.
#[derive(Clone, Copy)]
pub struct Mmio(u64);

macro_rules! access {
    ($read:ident, $write:ident, $integer:ty) => {
        pub fn $read(self, offset: u64) -> $integer {
            // SAFETY: `new` promises that there is no RAM here, so no object of the program can be meant.
            unsafe { ((self.0 + offset) as *const $integer).read_volatile() }
        }

        pub fn $write(self, offset: u64, value: $integer) {
            // SAFETY: as above.
            unsafe { ((self.0 + offset) as *mut $integer).write_volatile(value) }
        }
    };
}

impl Mmio {
    /// # Safety
    /// The address is mapped to itself and is not RAM that the program uses.
    pub const unsafe fn new(base: u64) -> Mmio {
        Mmio(base)
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);
}

const PAGE: usize = 4096;
const POOL_PAGES: usize = 96;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u8; PAGE]; POOL_PAGES]>);

// SAFETY: `pages` gives each page out once.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; PAGE]; POOL_PAGES]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Zeroed memory of `count` pages, for ever.
pub fn pages(count: usize) -> &'static mut [u8] {
    let first = TAKEN.fetch_add(count, Ordering::Relaxed);
    assert!(first + count <= POOL_PAGES);
    // SAFETY: the pages from `first` on are inside the pool and nobody else has them; they are zero because the image's
    // uninitialised data is.
    unsafe {
        core::slice::from_raw_parts_mut(POOL.0.get().cast::<u8>().add(first * PAGE), count * PAGE)
    }
}

/// Makes the memory from `start` on reachable. The page tables map everything above 4 GiB by pages of 1 GiB; a CPU without these gets
/// tables of 2 MiB pages here.
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
            let table = pages(1).as_mut_ptr().cast::<u64>();
            for index in 0..512 {
                table
                    .add(index)
                    .write_volatile(gib << 30 | (index as u64) << 21 | 0xe7);
            }
            entry.write_volatile(table as u64 | 0x27);
            core::arch::asm!("mov {scratch}, cr3", "mov cr3, {scratch}", scratch = out(reg) _);
        }
    }
}
