//! Boot timer: one port; the guest writes a byte for every milestone on its way up and the monitor stamps the time.

use crate::bus::BusDevice;
use crate::notice::{Notice, Notifier};

/// The port.
pub struct BootTimer(pub Notifier);

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.notify(Notice::Milestone(data[0]));
    }
}
