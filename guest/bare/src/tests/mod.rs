//! The tests, one file each.

pub mod smp;

mod blk;
mod counter;
mod dirty;
mod hello;
mod irq;
mod mem;
mod mmio;
mod pio;
mod timer;

use crate::Result;

/// The test with this name.
pub fn find(name: &[u8]) -> Option<fn() -> Result> {
    Some(match name {
        b"hello" => hello::run,
        b"pio" => pio::run,
        b"mmio" => mmio::run,
        b"irq" => irq::run,
        b"timer" => timer::run,
        b"mem" => mem::run,
        b"counter" => counter::run,
        b"dirty" => dirty::run,
        b"blk" => blk::run,
        b"smp" => smp::run,
        _ => return None,
    })
}
