//! Says the address of a network interface, and whether its link is down, for ever and whenever they change (virtio 1.2,
//! 5.1.4): `features=N` are agreed on besides.

use crate::virtio::{CONFIG, CONFIG_GENERATION, Device, INTERRUPT_ACK, INTERRUPT_STATUS, NET};
use crate::{Hex, Result, check, cmdline, print};

const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
const LINK_UP: u8 = 1;
const CONFIG_CHANGED: u32 = 2;

pub fn run() -> Result {
    let mut device = Device::find(NET)?;
    let wanted = MAC | cmdline::number("features", 0);
    let got = device.begin(wanted)?;
    let (_receive, _transmit) = (device.queue(0, 16)?, device.queue(1, 16)?);
    device.go()?;
    print!("mac: features ", Hex(got & 0xff_ffff), "\n");
    // The address, and the low byte of the status behind it.
    let mut known = [0; 7];
    loop {
        let mut now = [0; 7];
        let before = device.registers.read32(CONFIG_GENERATION);
        for (offset, byte) in (0..).zip(&mut now) {
            *byte = device.registers.read8(CONFIG + offset);
        }
        // Half of one and half of another one (4.2.2).
        let torn = before != device.registers.read32(CONFIG_GENERATION);
        if torn || now == known {
            continue;
        }
        let cause = device.registers.read32(INTERRUPT_STATUS);
        if known != [0; 7] {
            check("the device says that its configuration changed", cause & CONFIG_CHANGED, CONFIG_CHANGED)?;
        }
        device.registers.write32(INTERRUPT_ACK, cause);
        known = now;
        print!("mac:");
        for byte in &known[..6] {
            print!(" ", Hex((*byte).into()));
        }
        let down = got & STATUS != 0 && known[6] & LINK_UP == 0;
        print!(if down { ", down" } else { "" }, "\n");
    }
}
