//! The local APIC, by MMIO or by MSRs (Intel SDM volume 3, chapter 11), and the I/O APIC (Intel 82093AA
//! data sheet).

use core::sync::atomic::{AtomicBool, Ordering};

use crate::interrupts::{GSI_BASE, SPURIOUS, TIMER};
use crate::memory::Shared;
use crate::{cmdline, cpu};

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

pub const ID: u32 = 0x20;
pub const EOI: u32 = 0xb0;
pub const SPURIOUS_VECTOR: u32 = 0xf0;
pub const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
pub const LVT_TIMER: u32 = 0x320;
pub const TIMER_INITIAL: u32 = 0x380;
pub const TIMER_CURRENT: u32 = 0x390;
pub const TIMER_DIVIDE: u32 = 0x3e0;

pub const TIMER_ONE_SHOT: u32 = 0;
pub const TIMER_PERIODIC: u32 = 1 << 17;
pub const TIMER_TSC_DEADLINE: u32 = 1 << 18;
pub const MASKED: u32 = 1 << 16;

/// To all CPUs but the sender.
pub const ICR_OTHERS: u32 = 0xc_0000;
/// Interrupt commands to all CPUs but the sender.
pub const ICR_INIT: u32 = 0xc_4500;
pub const ICR_STARTUP: u32 = 0xc_4600;
pub const ICR_FIXED: u32 = 0xc_4000;

static X2APIC: AtomicBool = AtomicBool::new(false);

// SAFETY: the architecture's addresses of the two APICs; the guest never moves them, and no RAM is there.
const LOCAL: Shared = unsafe { Shared::new(0xfee0_0000) };
// SAFETY: as above.
const IO: Shared = unsafe { Shared::new(0xfec0_0000) };

const PIC_MASTER_MASK: u16 = 0x21;
const PIC_SLAVE_MASK: u16 = 0xa1;

/// Switches this CPU's local APIC on: to x2APIC mode if there is one, unless the command line has `apic=x`.
pub fn enable() {
    let base = cpu::read_msr(APIC_BASE);
    let offered = cpu::cpuid(1, 0)[2] & 1 << 21 != 0;
    let x2apic = base & APIC_BASE_X2APIC != 0 || offered && cmdline::value("apic") != Some(b"x");
    let mode = APIC_BASE_ENABLED | if x2apic { APIC_BASE_X2APIC } else { 0 };
    if base & mode != mode {
        // SAFETY: this register only selects how the local APIC is reached.
        unsafe { cpu::write_msr(APIC_BASE, base | mode) };
    }
    X2APIC.store(x2apic, Ordering::Relaxed);
    write(SPURIOUS_VECTOR, 0x100 | u32::from(SPURIOUS));
}

pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

pub fn read(register: u32) -> u32 {
    if is_x2apic() { cpu::read_msr(0x800 + (register >> 4)) as u32 } else { LOCAL.read32(register.into()) }
}

pub fn write(register: u32, value: u32) {
    if is_x2apic() {
        // SAFETY: the local APIC's registers don't touch memory, mode or privilege.
        unsafe { cpu::write_msr(0x800 + (register >> 4), value.into()) }
    } else {
        LOCAL.write32(register.into(), value);
    }
}

pub fn id() -> u32 {
    if is_x2apic() { read(ID) } else { read(ID) >> 24 }
}

/// Sends an interrupt command to the CPU with this id.
pub fn command(id: u32, command: u32) {
    if is_x2apic() {
        // SAFETY: as in `write`.
        unsafe { cpu::write_msr(0x800 + (ICR >> 4), u64::from(id) << 32 | u64::from(command)) }
    } else {
        write(ICR_HIGH, id << 24);
        write(ICR, command);
    }
}

pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Starts the timer; `mode` is one of the `TIMER_` modes, `count` the initial count at a divisor of 1.
pub fn start_timer(mode: u32, count: u32) {
    write(TIMER_DIVIDE, 0b1011);
    write(LVT_TIMER, mode | u32::from(TIMER));
    write(TIMER_INITIAL, count);
}

pub fn stop_timer() {
    write(LVT_TIMER, MASKED | u32::from(TIMER));
    write(TIMER_INITIAL, 0);
}

/// A tick each 100 ms or so (KVM's and QEMU's APIC timer run at 1 GHz), so that no wait for an interrupt
/// is for ever.
pub fn start_watchdog() {
    start_timer(TIMER_PERIODIC, 100_000_000);
}

/// Masks every input of the two 8259 interrupt controllers that the machine may have beside the I/O APIC:
/// they see the same lines, and would report them with the vectors of exceptions.
pub fn mask_pics() {
    cpu::out8(PIC_MASTER_MASK, 0xff);
    cpu::out8(PIC_SLAVE_MASK, 0xff);
}

/// Routes an input of the I/O APIC, edge triggered and active high, to this CPU; gives the vector.
pub fn route(gsi: u8) -> u8 {
    let vector = GSI_BASE + gsi;
    let register = 0x10 + 2 * u32::from(gsi);
    io_write(register + 1, id() << 24);
    io_write(register, vector.into());
    vector
}

/// Masks an input of the I/O APIC.
pub fn unroute(gsi: u8) {
    io_write(0x10 + 2 * u32::from(gsi), MASKED);
}

fn io_write(register: u32, value: u32) {
    IO.write32(0, register);
    IO.write32(0x10, value);
}
