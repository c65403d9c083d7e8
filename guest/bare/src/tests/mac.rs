//! Says the address of a network interface, for ever and whenever it changes (virtio 1.2, 5.1.4): `features=N` are
//! agreed on besides.

use crate::virtio::{CONFIG, CONFIG_GENERATION, Device, INTERRUPT_ACK, INTERRUPT_STATUS, NET};
use crate::{Hex, Result, check, cmdline, print};

const MAC: u64 = 1 << 5;
const CONFIG_CHANGED: u32 = 2;

pub fn run() -> Result {
    let mut device = Device::find(NET)?;
    let wanted = MAC | cmdline::number("features", 0);
    let got = device.begin(wanted)?;
    let (_receive, _transmit) = (device.queue(0, 16)?, device.queue(1, 16)?);
    device.go()?;
    print!("mac: features ", Hex(got & 0xff_ffff), "\n");
    let mut known = [0; 6];
    loop {
        let mut now = [0; 6];
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
        if known != [0; 6] {
            check("the device says that its configuration changed", cause & CONFIG_CHANGED, CONFIG_CHANGED)?;
        }
        device.registers.write32(INTERRUPT_ACK, cause);
        known = now;
        print!("mac:");
        for byte in known {
            print!(" ", Hex(byte.into()));
        }
        print!("\n");
    }
}
