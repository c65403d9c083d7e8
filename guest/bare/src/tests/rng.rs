//! A virtio entropy device (virtio 1.2, 5.4): two requests give two different fillings.

use crate::memory::{Shared, pages};
use crate::virtio::{self, Device, Irq, Queue, writable};
use crate::{Hex, Result, check, cmdline, print};

pub struct Source {
    queue: Queue,
    irq: Irq,
}

impl Source {
    pub fn open(device: &mut Device) -> Result<Source> {
        device.begin(0)?;
        let queue = device.queue(0, 16)?;
        device.go()?;
        Ok(Source { queue, irq: device.route() })
    }

    /// Fills memory with random bytes; gives how many.
    pub fn fill(&mut self, memory: Shared, size: u64) -> Result<u32> {
        let written = self.queue.request(&mut self.irq, &[writable(memory, size)])?;
        check(
            "the entropy device wrote something, and not too much",
            written > 0 && u64::from(written) <= size,
            true,
        )?;
        Ok(written)
    }
}

pub fn run() -> Result {
    let size = cmdline::number("bytes", 64).clamp(16, 4096);
    let mut source = Source::open(&mut Device::find(virtio::ENTROPY)?)?;
    let (first, second) = (pages(1), pages(1));
    let written = source.fill(first, size)?;
    source.fill(second, size)?;
    print!(
        "rng: ",
        written,
        " bytes, the first ",
        Hex(first.read64(0)),
        " and ",
        Hex(second.read64(0)),
        "\n"
    );
    check("random bytes are all zero", first.read64(0) | first.read64(8) == 0, false)?;
    check("random bytes are the same twice", first.read64(0) == second.read64(0), false)
}
