//! Memory addresses without a device: reads give all ones, writes go nowhere, in every size.

use crate::memory::Shared;
use crate::{Result, check, cmdline};

pub fn run() -> Result {
    // SAFETY: an address in the hole for devices below 4 GiB, or what the command line says; never the
    // guest's own image.
    let nowhere = unsafe { Shared::new(cmdline::number("address", 0xdff0_0000)) };
    for offset in [0, 0xff8] {
        check("read8 without a device", nowhere.read8(offset), 0xffu8)?;
        check("read16 without a device", nowhere.read16(offset), 0xffffu16)?;
        check("read32 without a device", nowhere.read32(offset), u32::MAX)?;
        check("read64 without a device", nowhere.read64(offset), u64::MAX)?;
        nowhere.write8(offset, 0);
        nowhere.write16(offset, 0);
        nowhere.write32(offset, 0);
        nowhere.write64(offset, 0);
        check("read64 without a device, after writes", nowhere.read64(offset), u64::MAX)?;
    }
    // Across the end of a page, where the VMM sees two halves.
    check("read64 across a page without a device", nowhere.read64(0xffc), u64::MAX)?;
    Ok(())
}
