//! Debug console (Bochs' port 0xe9): every byte written goes straight to the console; a read tells that it is there.

use std::sync::Arc;

use super::serial::Serial;
use crate::bus::BusDevice;

/// The port; it shares the serial port's output.
pub struct DebugConsole(pub Arc<Serial>);

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xe9);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.output(data);
    }
}
