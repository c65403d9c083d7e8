//! The ways a guest ends, chosen by `end=` on the command line.

use crate::{cmdline, cpu, print};

/// rvmm's registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7): sleep control, sleep status, and the
/// reset register.
const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
/// In the hole for devices below 4 GiB, where none is.
const NOWHERE: u64 = 0xdff0_0000;
/// SLP_TYP 5 and SLP_EN.
const SLEEP_S5: u8 = 5 << 2 | 1 << 5;

const PVPANIC: u16 = 0x505;
const EXIT_STATUS: u16 = 0x506;
const I8042: u16 = 0x64;
const QEMU_DEBUG_EXIT: u16 = 0x501;

/// Ends as the command line says, with `status=` and the last words of a Linux kernel if that is wanted.
pub fn end() -> ! {
    if cmdline::flag("last-words") {
        print!("Kernel panic - not syncing: not at all\n");
    }
    if cmdline::value("status").is_some() {
        cpu::out8(EXIT_STATUS, cmdline::number("status", 0) as u8);
    }
    by(cmdline::value("end").unwrap_or(b""))
}

/// Ends in the way with this name; without a name, by powering off.
#[inline(always)]
pub fn by(name: &[u8]) -> ! {
    match name {
        b"" | b"poweroff" => cpu::out8(SLEEP_CONTROL, SLEEP_S5),
        b"reset" | b"firecracker" => cpu::out8(I8042, 0xfe),
        b"acpi-reset" => cpu::out8(RESET, 1),
        b"qemu-exit" => cpu::out8(QEMU_DEBUG_EXIT, 0),
        b"triple" => cpu::triple_fault(),
        b"panic" => cpu::out8(PVPANIC, 1),
        b"spin" => spin(),
        b"nowhere" => nowhere(),
        _ => {}
    }
    // It takes the VMM a moment to end the machine.
    if cpu::ring() == 0 { cpu::halt() } else { spin() }
}

/// Goes on where no memory is: no KVM finds an instruction there.
fn nowhere() -> ! {
    // SAFETY: nothing is executed there.
    unsafe { core::arch::asm!("jmp {}", in(reg) NOWHERE, options(noreturn)) }
}

fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
