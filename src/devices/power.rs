//! Power: ACPI sleep and reset registers of a hardware-reduced machine (ACPI 6.5, 4.8.3.6 and 4.8.3.7), and the
//! reset line of the i8042 keyboard controller.

use crate::bus::BusDevice;
use crate::notice::{Notice, Notifier};

/// Bits of the sleep control register: the sleep type field and the enable bit.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The sleep type that means off (S5); the DSDT says so to the guest.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// What the reset register takes; the FADT says so to the guest.
pub const RESET_VALUE: u8 = 1;

/// Sleep control at offset 0, sleep status at 1, reset at 2.
pub struct Power(pub Notifier);

impl BusDevice for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data[0]) {
            (0, value) if value & SLEEP_ENABLE != 0 && sleep_type(value) == SLEEP_TYPE_OFF => {
                self.0.notify(Notice::PowerOff);
            }
            (2, RESET_VALUE) => self.0.notify(Notice::Reset),
            _ => {}
        }
    }
}

/// The sleep type in a value of the sleep control register.
fn sleep_type(control: u8) -> u8 {
    control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK
}

/// The keyboard controller without a keyboard, ports 0x60 to 0x64: it answers at once, and it resets.
pub struct I8042(pub Notifier);

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const COMMAND: u64 = 4;
        const PULSE_RESET: u8 = 0xfe;
        if (offset, data[0]) == (COMMAND, PULSE_RESET) {
            self.0.notify(Notice::Reset);
        }
    }
}
