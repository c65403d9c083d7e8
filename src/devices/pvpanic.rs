//! Panic device (QEMU docs/specs/pvpanic.rst): the guest's kernel tells of its own end.

use crate::bus::BusDevice;
use crate::notice::{Notice, Notifier};

/// The kernel has panicked and stays where it is.
const PANICKED: u8 = 1;

/// One port: a read tells which events are known, a write tells of one.
pub struct Pvpanic(pub Notifier);

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = PANICKED;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data[0] & PANICKED != 0 {
            self.0.notify(Notice::Panic);
        }
    }
}
