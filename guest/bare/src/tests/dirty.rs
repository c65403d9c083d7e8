//! Writes to `pages` distinct pages, spread over `mib` MiB of RAM, round after round: a known amount of
//! dirty memory.
//!
//! With `fill=1` all of these MiB have something in them first.
//!
//! Each page counts the rounds, so a machine that lost a page, for example in a snapshot, says `CORRUPT`.

use crate::memory::{self, PAGE, RegionKind, Shared};
use crate::{Failure, Hex, Result, boot, cmdline, cpu, print};

const FIRST: u64 = 2 << 20;

pub fn run() -> Result {
    let size = cmdline::number("mib", 64) << 20;
    let pages = cmdline::number("pages", 1024).clamp(1, size / PAGE);
    let rounds = cmdline::number("rounds", u64::MAX);
    let every = cmdline::number("every", 0);
    let stride = size / pages / PAGE * PAGE;
    let region = boot::memory_map()
        .filter(|region| region.kind == RegionKind::Ram)
        .map(|region| (region.start.max(FIRST), region.start + region.size))
        .find(|(start, end)| start + size <= *end)
        .ok_or(Failure { reason: "no RAM of this size in one piece", got: 0, wanted: size })?;
    memory::map(region.0, size);
    print!("dirty: ", pages, " pages from ", Hex(region.0), ", one each ", Hex(stride), "\n");

    if cmdline::number("fill", 0) != 0 {
        for page in (0..size).step_by(PAGE as usize) {
            // SAFETY: as below.
            unsafe { Shared::new(region.0 + page) }.write64(8, 1);
        }
    }
    for round in 0..rounds {
        let start = cpu::tsc();
        for page in 0..pages {
            // SAFETY: RAM of the memory map, above everything that belongs to the image.
            let word = unsafe { Shared::new(region.0 + page * stride) };
            let count = word.read64(0);
            // What the VMM or another boot left there is no count.
            if round != 0 && count != round {
                print!("CORRUPT page ", Hex(word.address()), "\n");
                return Err(Failure { reason: "a page has lost a round", got: count, wanted: round });
            }
            word.write64(0, round + 1);
        }
        if round == 0 {
            print!("dirty: ready after ", cpu::tsc() - start, " tsc\n");
        } else if every != 0 && (round + 1) % every == 0 {
            print!("dirty: round ", round + 1, " took ", cpu::tsc() - start, " tsc\n");
        }
    }
    Ok(())
}
