//! Boot timer: one port; the guest writes a byte for every milestone on its way up and the monitor stamps the time.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::BusDevice;
use crate::notice::{Notice, Notifier};

/// Milestones that are told: enough for many restarts, and no way to fill the host's memory.
const LIMIT: u32 = 1024;

/// The port.
pub struct BootTimer {
    notifier: Notifier,
    told: AtomicU32,
}

impl BootTimer {
    /// A port whose milestones go to `notifier`.
    pub fn new(notifier: Notifier) -> Self {
        BootTimer { notifier, told: AtomicU32::new(0) }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let more = |told| (told < LIMIT).then_some(told + 1);
        if self.told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            self.notifier.notify(Notice::Milestone(data[0]));
        }
    }
}
