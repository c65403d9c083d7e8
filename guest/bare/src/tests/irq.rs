//! An interrupt from a device: the transmitter of COM1 says that it is empty, through the I/O APIC
//! (PC16550D data sheet, 8.6).

use crate::serial::COM1;
use crate::{Result, apic, check, cmdline, cpu, interrupts, print};

const COM1_GSI: u8 = 4;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const INTERRUPT_IDENTIFICATION: u16 = COM1 + 2;
const MODEM_CONTROL: u16 = COM1 + 4;
const TRANSMITTER_EMPTY: u8 = 0b0010;

pub fn run() -> Result {
    let wanted = cmdline::number("count", 10);
    apic::enable();
    apic::start_watchdog();
    let vector = apic::route(COM1_GSI);
    cpu::out8(MODEM_CONTROL, 0x0b);
    cpu::out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
    // Some devices interrupt at once, others only when a byte has gone.
    cpu::let_interrupts_in();
    cpu::in8(INTERRUPT_IDENTIFICATION);

    for sent in 0..wanted {
        let before = interrupts::count(vector);
        cpu::out8(COM1, b'.');
        if !interrupts::wait(|| interrupts::count(vector) > before) {
            cpu::out8(INTERRUPT_ENABLE, 0);
            return check("no interrupt after a byte", sent, wanted);
        }
        let cause = cpu::in8(INTERRUPT_IDENTIFICATION) & 0x0f;
        check("the cause of the interrupt", cause, TRANSMITTER_EMPTY)?;
    }
    cpu::out8(INTERRUPT_ENABLE, 0);
    apic::unroute(COM1_GSI);
    print!("\nirq: ", interrupts::count(vector), " interrupts\n");
    Ok(())
}
