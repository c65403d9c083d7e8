//! Generic event device (ACPI 6.5, 5.6.9, ACPI0013): the host presses the power button or changes the machine's
//! generation, the guest gets an interrupt and reads which it was.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::Irq;
use crate::snapshot::{self, Persist, Saved};

/// What can happen; the value is the bit that the DSDT's `_EVT` method looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// The power button was pressed: shut down in an orderly way.
    PowerButton = 1,
    /// The machine was restored or cloned: its generation is another one (VMGenID).
    NewGeneration = 2,
}

/// One port: a read gives the pending events and clears them.
pub struct Ged {
    pending: AtomicU8,
    irq: Irq,
}

impl Ged {
    /// A device that interrupts through `irq`.
    pub fn new(irq: Irq) -> Self {
        Ged { pending: AtomicU8::new(0), irq }
    }

    /// Tells the guest.
    pub fn raise(&self, event: Event) {
        self.pending.fetch_or(event as u8, Ordering::SeqCst);
        self.irq.trigger();
    }

    /// Forgets what is pending: the machine starts anew.
    pub fn reset(&self) {
        self.pending.store(0, Ordering::SeqCst);
    }
}

impl BusDevice for Ged {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = self.pending.swap(0, Ordering::SeqCst);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// Saved form.
#[derive(Serialize, Deserialize)]
struct State {
    pending: u8,
}

impl Persist for &Ged {
    fn save(&self) -> Saved {
        Saved::pack("ged", 1, &State { pending: self.pending.load(Ordering::SeqCst) })
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let state: State = saved.unpack("ged", 1)?;
        self.pending.store(state.pending, Ordering::SeqCst);
        if state.pending != 0 {
            self.irq.trigger();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_event_once() {
        let irq = Irq::new().unwrap();
        let ged = Ged::new(irq.try_clone().unwrap());
        ged.raise(Event::PowerButton);
        ged.raise(Event::NewGeneration);
        assert_eq!(irq.eventfd().read().unwrap(), 2);
        let mut data = [0xff; 4];
        ged.read(0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        ged.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
