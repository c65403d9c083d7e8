//! The tests, one file each.

pub mod smp;

mod blk;
mod counter;
mod dirty;
mod echo;
mod hello;
mod hostile;
mod irq;
mod kick;
mod mac;
mod mem;
mod mmio;
mod net;
mod pio;
mod rng;
mod stamp;
mod timer;
mod user;

use crate::Result;

/// The test with this name.
pub fn find(name: &[u8]) -> Option<fn() -> Result> {
    Some(match name {
        b"blk" => blk::run,
        b"counter" => counter::run,
        b"dirty" => dirty::run,
        b"echo" => echo::run,
        b"hello" => hello::run,
        b"hostile" => hostile::run,
        b"irq" => irq::run,
        b"kick" => kick::run,
        b"mac" => mac::run,
        b"mem" => mem::run,
        b"mmio" => mmio::run,
        b"net" => net::run,
        b"pio" => pio::run,
        b"rng" => rng::run,
        b"smp" => smp::run,
        b"stamp" => stamp::run,
        b"timer" => timer::run,
        b"user" => user::run,
        _ => return None,
    })
}
