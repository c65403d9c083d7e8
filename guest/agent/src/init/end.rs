//! The end of the machine: the status goes to the host, the disks are left in order, the power goes off.
//!
//! Ports of rvmm's machines (`ioperm(2)`): 0x506 takes the status, 0x3e9 stamps of the way up (`rvmm.stamp` on the kernel's
//! command line: 1 at the entry of this program, 2 before that of the command).

use core::arch::asm;

use agent::container::Mount;

use super::root;
use crate::sys::{self, nr};

const EXIT_STATUS: u16 = 0x506;
const BOOT_TIMER: u16 = 0x3e9;

const MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];
const POWER_OFF: usize = 0x4321_fedc;

/// Waits until all that was written to a terminal has left it (`TCSBRK`).
const DRAIN: usize = 0x5409;

/// Tells the status, and switches the machine off.
pub fn power_off(status: u8, mounts: &[Mount]) -> ! {
    let _ = sys::plain(nr::IOCTL, [2, DRAIN, 1]);
    let _ = sys::plain(nr::SYNC, [0; 3]);
    root::leave(mounts);
    out(EXIT_STATUS, status);
    // What the kernel says of the end is not for the command's output.
    let _ = sys::write_file("/proc/sys/kernel/printk", b"0");
    let _ = sys::plain(nr::REBOOT, [MAGIC[0], MAGIC[1], POWER_OFF]);
    // The kernel does not know how: its panic is all that is left.
    sys::exit(status)
}

/// Tells the boot timer a milestone, if that is wanted.
pub fn stamp(wanted: bool, milestone: u8) {
    if wanted {
        out(BOOT_TIMER, milestone);
    }
}

fn out(port: u16, value: u8) {
    if sys::plain(nr::IOPERM, [port.into(), 1, 1]).is_ok() {
        // SAFETY: both ports are rvmm's, which does nothing to this program's memory; elsewhere nothing listens there.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
        };
    }
}
