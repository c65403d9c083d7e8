//! Saved state of what all virtio devices share. It names no transport.
//!
//! Over a snapshot nothing is lost, whatever was on its way when the vCPUs stopped:
//! - a request that the device had taken is finished before the state is read ([`Function::freeze`]), or named in it;
//! - a kick that was signalled and not handled: every queue is kicked again after a load, and after a thaw;
//! - an interrupt that was signalled and that KVM had not delivered (an irqfd of an I/O APIC's pin goes through a
//!   work queue): its cause is in the status that the driver has not acknowledged, and the line is pulled again when the
//!   chips have their state. One that had been delivered as well comes twice, which a driver takes as spurious.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState, QueueT};

use super::{CONFIG_CHANGE, DRIVER_OK, Function, Selectors};
use crate::memory::Memory;
use crate::snapshot::{self, Persist, Saved};

const KIND: &str = "virtio";
const VERSION: u32 = 1;

/// Saved form of a [`Function`].
#[derive(Serialize, Deserialize)]
struct State {
    id: u32,
    features: u64,
    status: u32,
    interrupt: u32,
    /// Changes with the configuration space, so that a driver that has read half of it begins anew.
    #[serde(default)]
    generation: u32,
    selectors: Selectors,
    queues: Vec<SavedQueue>,
    device: Saved,
}

#[derive(Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl SavedQueue {
    /// The queue, whose rings must be in guest memory if the driver has made it ready.
    fn queue(&self, max_size: u16, event_idx: bool, memory: &Memory) -> Result<Queue, String> {
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
        .map_err(|error| error.to_string())?;
        match queue.ready() && !queue.is_valid(memory) {
            true => Err("a queue lies outside guest memory".into()),
            false => Ok(queue),
        }
    }
}

impl Function {
    /// Refuses features that the device does not offer here.
    fn check_features(&self, features: u64) -> Result<(), snapshot::Error> {
        let missing = features & !self.offered();
        if missing == 0 {
            return Ok(());
        }
        let bits = (0..u64::BITS).filter(|bit| missing & 1 << bit != 0);
        let names = bits.map(|bit| match self.device.feature(bit) {
            Some(name) => name.into(),
            None => format!("feature {bit}"),
        });
        let features = names.collect::<Vec<_>>().join(", ");
        Err(snapshot::Error::Features { device: self.device.label(), features })
    }
}

/// Whether a driver in the guest uses the device that this is the state of, and the device is of this type.
pub fn is_driven(saved: &Saved, id: u32) -> bool {
    let state = saved.unpack::<State>(KIND, VERSION);
    state.is_ok_and(|state| state.id == id && state.status & DRIVER_OK != 0)
}

impl Persist for Function {
    fn save(&self) -> Saved {
        let queues = self.queues.iter().map(|queue| SavedQueue {
            size: queue.size(),
            ready: queue.ready(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        });
        let state = State {
            id: self.device.id(),
            features: self.features,
            status: self.status,
            interrupt: self.interrupt.status(),
            generation: self.generation,
            selectors: self.selectors,
            queues: queues.collect(),
            device: self.device.save(),
        };
        Saved::pack(KIND, VERSION, &state)
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let state: State = saved.unpack(KIND, VERSION)?;
        let invalid = |reason: String| snapshot::Error::Invalid { kind: KIND, reason };
        if state.id != self.device.id() {
            return Err(invalid(format!("it has device {} where {} stands", state.id, self.device.id())));
        }
        self.check_features(state.features)?;
        if state.queues.len() != self.queues.len() {
            return Err(invalid(format!(
                "it has {} queues instead of {}",
                state.queues.len(),
                self.queues.len()
            )));
        }
        let event_idx = state.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues =
            state.queues.iter().zip(&self.queues).map(|(saved, queue)| {
                saved.queue(queue.max_size(), event_idx, &self.memory).map_err(invalid)
            });
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        self.device.load(&state.device)?;
        if state.status & DRIVER_OK != 0 {
            self.device.start(state.features).map_err(|error| invalid(error.to_string()))?;
        }
        self.queues = queues;
        self.features = state.features;
        self.status = state.status;
        self.selectors = state.selectors;
        let changed = if self.device.differs() { CONFIG_CHANGE } else { 0 };
        self.generation = state.generation.wrapping_add(changed);
        let interrupt = state.interrupt | changed;
        self.interrupt.status.store(interrupt, Ordering::SeqCst);
        // A kick or an interrupt that was on its way when the machine was saved is given once more.
        self.touch();
        if interrupt != 0 {
            self.interrupt.line.trigger();
        }
        Ok(())
    }
}
