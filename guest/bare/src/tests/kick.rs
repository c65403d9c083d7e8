//! Queue notifications as fast as the guest can write them: what a kick costs.

use crate::virtio::Device;
use crate::{Result, cmdline, cpu, print};

pub fn run() -> Result {
    let count = cmdline::number("count", 1000);
    let mut device = Device::find(0)?;
    device.begin(0)?;
    let queue = device.queue(0, 16)?;
    device.go()?;
    let start = cpu::tsc();
    for _ in 0..count {
        queue.notify();
    }
    print!("kick: ", count, " kicks took ", cpu::tsc() - start, " tsc\n");
    Ok(())
}
