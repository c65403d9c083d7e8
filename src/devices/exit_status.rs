//! Exit status: one port; the guest's init writes the status of its command before it switches the machine off.

use crate::bus::BusDevice;
use crate::notice::{Notice, Notifier};

/// The port.
pub struct ExitStatus(pub Notifier);

impl BusDevice for ExitStatus {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.notify(Notice::ExitStatus(data[0]));
    }
}
