//! Ports: the scratch register of COM1, ports without a device, string instructions.

use crate::serial::COM1;
use crate::{Result, check, cmdline, cpu};

const SCRATCH: u16 = COM1 + 7;

pub fn run() -> Result {
    let nowhere = cmdline::number("port", 0x4f0) as u16;
    for value in [0x00, 0x5a, 0xa5] {
        cpu::out8(SCRATCH, value);
        check("the scratch register of COM1 kept another byte", cpu::in8(SCRATCH), value)?;
    }
    check("in8 from a port without a device", cpu::in8(nowhere), 0xffu8)?;
    check("in16 from a port without a device", cpu::in16(nowhere), 0xffffu16)?;
    check("in32 from a port without a device", cpu::in32(nowhere), 0xffff_ffffu32)?;
    cpu::out8(nowhere, 1);
    cpu::out16(nowhere, 2);
    cpu::out32(nowhere, 3);
    check("in8 from a port without a device, after writes", cpu::in8(nowhere), 0xffu8)?;

    let mut bytes = [0u8; 16];
    cpu::in_string(nowhere, &mut bytes);
    check(
        "rep insb from a port without a device",
        bytes.iter().filter(|byte| **byte == 0xff).count() as u64,
        16u64,
    )?;
    cpu::out_string(SCRATCH, b"0123456789abcdef");
    check("rep outsb: the last byte stays", cpu::in8(SCRATCH), b'f')?;
    cpu::in_string(SCRATCH, &mut bytes);
    check(
        "rep insb gives the same byte each time",
        bytes.iter().filter(|byte| **byte == b'f').count() as u64,
        16u64,
    )?;
    cpu::out_string(COM1, b"rep outsb\n");
    Ok(())
}
