//! Which device answers at an address: one map for port I/O, one for memory-mapped I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device with registers. Accesses arrive on vCPU threads, several at once.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes (1 to 8) at `offset` from the start of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` (1 to 8 bytes) at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on the bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Address range {start:#x}+{len:#x} is empty, wraps or is taken")]
pub struct Overlap {
    /// First address.
    pub start: u64,
    /// Number of addresses.
    pub len: u64,
}

/// Address ranges and the devices behind them. It is built once and then only read.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `len` addresses from `start` on.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let overlap = Overlap { start, len };
        let end = start.checked_add(len).filter(|&end| end > start).ok_or(Overlap { start, len })?;
        match self.ranges.range(..end).next_back() {
            Some((&other, &(other_len, _))) if other + other_len > start => Err(overlap),
            _ => {
                self.ranges.insert(start, (len, device));
                Ok(())
            }
        }
    }

    /// Reads; where no device answers the guest sees all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; where no device answers the write is lost, as on a real bus.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, width: usize) -> Option<(u64, &dyn BusDevice)> {
        let (&start, (len, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - start;
        (offset < *len && width as u64 <= len - offset).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn finds_the_device_and_its_edges() {
        let probe = Arc::new(Probe::default());
        let mut bus = Bus::default();
        bus.insert(0x100, 8, probe.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x106, &mut data);
        assert_eq!(data, [6, 6]);
        for outside in [0xff, 0x107, 0x108, u64::MAX] {
            bus.read(outside, &mut data);
            assert_eq!(data, [0xff, 0xff], "{outside:#x}");
            bus.write(outside, &data);
        }
        bus.write(0x100, &[1]);
        assert_eq!(*probe.0.lock().unwrap(), vec![(0, vec![1])]);
    }

    #[test]
    fn refuses_overlaps() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Probe::default())).unwrap();
        for (start, len) in [(0x100, 8), (0xff, 2), (0x107, 1), (0x80, 0x1000), (0x200, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(start, len, Arc::new(Probe::default())), Err(Overlap { start, len }));
        }
        bus.insert(0x108, 1, Arc::new(Probe::default())).unwrap();
        bus.insert(0xff, 1, Arc::new(Probe::default())).unwrap();
    }
}
