//! Virtqueues as a device sees them: lent for one call, with every descriptor checked (virtio 1.2, 2.6 and 2.7).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::function::{Interrupt, USED_BUFFERS};
use crate::memory::{Buffers, Memory};

/// Chains taken in one call before others have their turn.
pub(super) const BUDGET: u32 = 1024;

/// The most descriptors in a chain. The specification allows as many as the queue has entries, which is less.
const MAX_PARTS: usize = 1024;

/// The driver broke a rule that the device cannot work around: the device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// The ring itself is not readable or jumps.
    #[error("Queue {queue} is broken")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// What was wrong.
        source: virtio_queue::Error,
    },
    /// A descriptor chain points outside memory, is too long or has its parts in the wrong order.
    #[error("A descriptor chain in queue {queue} is not valid: {reason}")]
    Chain {
        /// Index of the queue.
        queue: usize,
        /// What was wrong.
        reason: String,
    },
}

/// A descriptor chain taken from a queue: first what the device may read, then what it may write.
pub struct Chain {
    /// Identifies the chain when it is given back.
    pub head: u16,
    /// What the driver sends.
    pub readable: Buffers,
    /// Where the driver wants the answer.
    pub writable: Buffers,
}

/// What a device is lent for the time of one call.
pub struct Lent<'a> {
    pub(super) memory: &'a Arc<Memory>,
    pub(super) queues: &'a mut [Queue],
    /// Chains that the device may still take in this call: a driver that never stops adding some must not keep
    /// the worker from everything else.
    pub(super) budget: u32,
    /// Queues that may have more to take after this call.
    pub(super) starved: u64,
    /// Queues that got used buffers during this call: their driver may want an interrupt.
    pub(super) used: u64,
    pub(super) interrupt: &'a Interrupt,
    /// The configuration space has changed.
    pub(super) changed: bool,
}

impl Lent<'_> {
    /// Takes the next chain from queue `index`, or `None` when there is none; only then does the
    /// driver kick again, so a device takes chains until it gets `None` or knows why it stops.
    pub fn take(&mut self, index: usize) -> Result<Option<Chain>, Violation> {
        let memory = self.memory.as_ref();
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(None) };
        if self.budget == 0 {
            self.starved |= 1 << index;
            return Ok(None);
        }
        self.budget -= 1;
        let ring = |source| Violation::Ring { queue: index, source };
        let chain = loop {
            if let Some(chain) = queue.iter(memory).map_err(ring)?.next() {
                break chain;
            }
            // Ask for a kick first and look again then, or a buffer that comes between is missed.
            if !queue.enable_notification(memory).map_err(ring)? {
                return Ok(None);
            }
        };
        let head = chain.head_index();
        self.walk(index, head).map(Some)
    }

    /// Takes a chain again that was taken and not given back before the machine was saved.
    pub fn take_again(&mut self, index: usize, head: u16) -> Result<Option<Chain>, Violation> {
        match self.queues.get(index).is_some_and(QueueT::ready) {
            true => self.walk(index, head).map(Some),
            false => Ok(None),
        }
    }

    /// Follows the descriptors from `head` on (2.7.5 and 2.7.7).
    fn walk(&self, queue: usize, head: u16) -> Result<Chain, Violation> {
        let invalid = |reason: &str| Violation::Chain { queue, reason: reason.into() };
        let (mut readable, mut writable) = (Buffers::new(self.memory), Buffers::new(self.memory));
        let mut table = GuestAddress(self.queues[queue].desc_table());
        let mut len = u32::from(self.queues[queue].size());
        let mut indirect = false;
        let mut next = head;
        for _ in 0..MAX_PARTS {
            if u32::from(next) >= len {
                return Err(invalid("it leads out of its table"));
            }
            let place = table.checked_add(16 * u64::from(next)).ok_or_else(|| invalid("its table wraps"))?;
            let descriptor: Descriptor =
                self.memory.read_obj(place).map_err(|_| invalid("its table is outside guest memory"))?;
            let flags = u32::from(descriptor.flags());
            if flags & VRING_DESC_F_INDIRECT != 0 {
                let bytes = descriptor.len();
                if indirect || flags & VRING_DESC_F_NEXT != 0 {
                    return Err(invalid("an indirect table is not the last thing in it"));
                }
                if bytes == 0 || !bytes.is_multiple_of(16) || bytes / 16 > 1 << 16 {
                    return Err(invalid("its indirect table has an odd size"));
                }
                (table, len, next, indirect) = (descriptor.addr(), bytes / 16, 0, true);
                continue;
            }
            let side = if flags & VRING_DESC_F_WRITE != 0 {
                &mut writable
            } else if writable.is_empty() {
                &mut readable
            } else {
                return Err(invalid("a readable part follows a writable one"));
            };
            side.push(descriptor.addr(), descriptor.len() as usize)
                .map_err(|error| invalid(&error.to_string()))?;
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(Chain { head, readable, writable });
            }
            next = descriptor.next();
        }
        Err(invalid("it has no end, or too many parts"))
    }

    /// Puts the chain that was taken last back: the next [`take`](Self::take) gives it again. Any number of chains
    /// can be put back one after the other, as long as none of them was given.
    pub fn put_back(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
    }

    /// Gives a chain back to the driver with `written` bytes in its writable part.
    pub fn give(&mut self, index: usize, head: u16, written: u32) -> Result<(), Violation> {
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        queue
            .add_used(self.memory.as_ref(), head, written)
            .map_err(|source| Violation::Ring { queue: index, source })?;
        self.used |= 1 << index;
        Ok(())
    }

    /// Interrupts the driver now if it wants that, for a device whose next step may take long.
    /// Whoever lends does the same at the end of the call.
    pub fn notify(&mut self) {
        let mut wanted = false;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            wanted |= self.used & 1 << index != 0 && wants_interrupt(queue, self.memory);
        }
        self.used = 0;
        if wanted {
            self.interrupt.raise(USED_BUFFERS);
        }
    }

    /// The device stops with work left in queue `index`, so that others have their turn: it is kicked again soon.
    pub fn again(&mut self, index: usize) {
        self.starved |= 1 << index;
    }

    /// The configuration space has changed: the driver is to read it again.
    pub fn config_changed(&mut self) {
        self.changed = true;
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<Memory> {
        self.memory
    }
}

/// Whether the driver of a queue with used buffers is to be interrupted (2.7.7). A queue that cannot be read any more
/// interrupts: the driver must look.
fn wants_interrupt(queue: &mut Queue, memory: &Memory) -> bool {
    if queue.event_idx_enabled() {
        return queue.needs_notification(memory).unwrap_or(true);
    }
    // The driver sees what was used, or its wish is seen here.
    fence(Ordering::SeqCst);
    let flags: Result<u16, _> = memory.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
    flags.map_or(true, |flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::mock::{self, Driver};
    use crate::devices::virtio::{Config, rng};

    #[test]
    fn drivers_say_when_they_want_interrupts() {
        let mut driver = Driver::new(rng::Config::default().open(&mock::context()).unwrap());
        let mut interrupts = |features, place: fn(&mock::Ring) -> u64, value: u16| {
            driver.start(features);
            driver.interrupted();
            let ring = &driver.rings[0];
            driver.memory.write_obj(value, GuestAddress(place(ring))).unwrap();
            driver.request(0, &[], 16);
            driver.interrupted()
        };
        let flags = |ring: &mock::Ring| ring.available;
        let used_event = |ring: &mock::Ring| ring.available + 4 + 2 * u64::from(ring.size);
        const EVENT_IDX: u64 = 1 << 29;
        // Each kind of driver is heard by its own words only.
        assert_eq!([0, 1].map(|value| interrupts(!EVENT_IDX, flags, value)), [true, false]);
        assert_eq!([0, 1].map(|value| interrupts(u64::MAX, used_event, value)), [true, false]);
        assert!(interrupts(!EVENT_IDX, used_event, 1) && interrupts(u64::MAX, flags, 1));
    }
}
