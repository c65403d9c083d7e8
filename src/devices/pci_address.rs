//! The address register of PCI's configuration space (PCI Local Bus 3.0, 3.2.2.3.2), with no bus behind it.
//!
//! A kernel that finds it has a way to look for PCI devices and finds none: data ports read as all ones. Without it, Linux
//! complains on every console, however quiet it is to be.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::BusDevice;

/// The register. It keeps what is written whole; its bytes are other devices on other machines, and nothing here.
#[derive(Default)]
pub struct PciAddress(AtomicU32);

impl BusDevice for PciAddress {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset == 0 => *word = self.0.load(Ordering::Relaxed).to_le_bytes(),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(word)) = (offset, data.try_into()) {
            self.0.store(u32::from_le_bytes(word), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_words_and_nothing_else() {
        let register = PciAddress::default();
        register.write(0, &0x8000_0000_u32.to_le_bytes());
        register.write(1, &[6]);
        register.write(3, &[1]);
        let (mut word, mut byte) = ([0; 4], [0]);
        register.read(0, &mut word);
        register.read(3, &mut byte);
        assert_eq!((u32::from_le_bytes(word), byte), (0x8000_0000, [0xff]));
    }
}
