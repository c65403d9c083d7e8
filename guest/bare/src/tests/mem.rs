//! All RAM above 2 MiB: one word of each `step` MiB holds what was written there, and nothing is there
//! twice.

use crate::memory::{self, RegionKind, Shared};
use crate::{Failure, Result, boot, cmdline, cpu, print};

const FIRST: u64 = 2 << 20;
const WORD: u64 = 8;

fn pattern(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Calls `visit` with one word in each step, and with the last word of each region.
fn each_word(mut visit: impl FnMut(Shared) -> Result) -> Result {
    let step = cmdline::number("step", 1).max(1) << 20;
    for region in boot::memory_map().filter(|region| region.kind == RegionKind::Ram) {
        let end = region.start + region.size;
        let start = region.start.max(FIRST);
        if start + WORD > end {
            continue;
        }
        for address in (start..end).step_by(step as usize).chain([(end & !7) - WORD]) {
            // SAFETY: RAM of the memory map, above everything that belongs to the image.
            visit(unsafe { Shared::new(address) })?;
        }
    }
    Ok(())
}

pub fn run() -> Result {
    for region in boot::memory_map().filter(|region| region.kind == RegionKind::Ram) {
        memory::map(region.start, region.size);
    }
    let mut words = 0u64;
    let start = cpu::tsc();
    each_word(|word| {
        word.write64(0, pattern(word.address()));
        words += 1;
        Ok(())
    })?;
    let written = cpu::tsc();
    each_word(|word| {
        let (got, wanted) = (word.read64(0), pattern(word.address()));
        if got == wanted {
            return Ok(());
        }
        print!("mem: at ", crate::Hex(word.address()), "\n");
        Err(Failure { reason: "memory does not hold what was written", got, wanted })
    })?;
    print!(
        "mem: ",
        words,
        " words, written in ",
        written - start,
        " tsc, read in ",
        cpu::tsc() - written,
        " tsc\n"
    );
    Ok(())
}
