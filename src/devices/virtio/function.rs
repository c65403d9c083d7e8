//! What every virtio device shares, whatever carries it: status, features, queues and interrupt
//! (virtio 1.2, sections 2 and 3).
//!
//! ```text
//!          ACKNOWLEDGE, DRIVER, features,     queues set up,
//!   reset ──────────────────────────────► ready ──────────────► running
//!     ▲      FEATURES_OK                        DRIVER_OK          │ driver breaks a rule
//!     └────────────────────────── status := 0 ◄──────── needs reset ┘
//! ```
//!
//! One lock guards a function: vCPU threads take it to set the device up, its worker takes it to move
//! data. The interrupt status is outside that lock, so an interrupt handler in the guest never waits for I/O.

mod state;

pub use state::is_driven;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use log::warn;
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::queues::BUDGET;
use super::{Lent, Violation, VirtioDevice};
use crate::disk;
use crate::irq::Irq;
use crate::memory::Memory;
use crate::sys::event::event;

/// Features of the transport and the queues, offered for every device.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// Why the device interrupts (virtio 1.2, 4.2.2, InterruptStatus).
pub(super) const USED_BUFFERS: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The interrupt of one function: what it is for, and the line that carries it.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: Irq,
}

impl Interrupt {
    pub(super) fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.trigger();
    }

    /// The causes that the driver has not acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges `causes`.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// The line, to be connected to the guest.
    pub fn line(&self) -> &Irq {
        &self.line
    }
}

/// Which feature word and which queue the driver is looking at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Selectors {
    pub device_features: u32,
    pub driver_features: u32,
    pub queue: u32,
}

/// A virtio device with its common state.
pub struct Function {
    device: Box<dyn VirtioDevice>,
    memory: Arc<Memory>,
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
    interrupt: Arc<Interrupt>,
    pub(super) selectors: Selectors,
    features: u64,
    status: u32,
    /// A driver has begun with the device since the machine was switched on.
    known: bool,
    generation: u32,
    /// The machine is stopped and may be in the middle of being saved: nothing moves.
    frozen: bool,
}

impl Function {
    /// Wraps `device`. Its queues are not ready and its interrupt line is not connected.
    pub fn new(device: Box<dyn VirtioDevice>, memory: &Arc<Memory>) -> io::Result<Self> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&size| Queue::new(size).map_err(io::Error::other))
            .collect::<io::Result<Vec<_>>>()?;
        let kicks = queues.iter().map(|_| event()).collect::<io::Result<Vec<_>>>()?;
        Ok(Function {
            device,
            memory: Arc::clone(memory),
            queues,
            kicks,
            interrupt: Arc::new(Interrupt { status: AtomicU32::new(0), line: Irq::new()? }),
            selectors: Selectors::default(),
            features: 0,
            status: 0,
            known: false,
            generation: 0,
            frozen: false,
        })
    }

    /// The device itself.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// One eventfd per queue: the driver's kick arrives there.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The interrupt, which has its own life beside the lock.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        COMMON_FEATURES | self.device.features()
    }

    pub(super) fn status(&self) -> u32 {
        self.status
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.selectors.queue as usize)
    }

    /// The driver may set queues up only between FEATURES_OK and DRIVER_OK.
    pub(super) fn configurable(&self) -> bool {
        self.status & FEATURES_OK != 0 && self.status & (DRIVER_OK | NEEDS_RESET) == 0
    }

    /// The driver chooses the features of one 32-bit word.
    pub(super) fn choose_features(&mut self, word: u32, value: u32) {
        if self.status & FEATURES_OK == 0 && word < 2 {
            let shift = 32 * word;
            self.features = self.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// The driver writes the status register: zero resets, otherwise bits are added.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        self.known = true;
        let added = value & 0xff & !self.status & !NEEDS_RESET;
        self.status |= added;
        if added & FEATURES_OK != 0 && !self.acceptable(self.features) {
            self.status &= !FEATURES_OK;
        }
        if added & DRIVER_OK != 0 {
            match self.status & FEATURES_OK {
                0 => self.status &= !DRIVER_OK,
                _ => self.start(),
            }
        }
    }

    fn acceptable(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn start(&mut self) {
        let event_idx = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
        }
        if self.queues.iter().any(|queue| queue.ready() && !queue.is_valid(self.memory.as_ref())) {
            return self.needs_reset("a queue lies outside guest memory");
        }
        match self.device.start(self.features) {
            // Buffers that were made available before DRIVER_OK are seen now.
            Ok(()) => self.touch(),
            Err(error) => self.needs_reset(&error.to_string()),
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.selectors = Selectors::default();
        self.features = 0;
        self.status = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
    }

    /// The machine is switched off.
    pub fn power_off(&mut self) {
        self.reset();
        self.known = false;
    }

    /// Whether a driver has begun with the device since the machine was switched on or restored.
    pub fn is_known(&self) -> bool {
        self.known || self.status != 0
    }

    fn needs_reset(&mut self, reason: &str) {
        warn!("virtio device {} stops until its driver resets it: {reason}", self.device.id());
        self.status |= NEEDS_RESET;
        if self.status & DRIVER_OK != 0 {
            self.interrupt.raise(CONFIG_CHANGE);
        }
    }

    fn running(&self) -> bool {
        !self.frozen && self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Lends the queues to the device for one call, then interrupts the driver if it wants that.
    fn lend(&mut self, call: impl FnOnce(&mut dyn VirtioDevice, &mut Lent) -> Result<(), Violation>) {
        if !self.running() {
            return;
        }
        let mut lent = Lent {
            memory: &self.memory,
            queues: &mut self.queues,
            budget: BUDGET,
            starved: 0,
            used: 0,
            interrupt: &self.interrupt,
            changed: false,
        };
        let result = call(self.device.as_mut(), &mut lent);
        lent.notify();
        let Lent { starved, changed, .. } = lent;
        if changed {
            self.generation = self.generation.wrapping_add(1);
            self.interrupt.raise(CONFIG_CHANGE);
        }
        for (index, kick) in self.kicks.iter().enumerate() {
            if starved & 1 << index != 0 {
                let _ = kick.write(1);
            }
        }
        if let Err(violation) = result {
            self.needs_reset(&violation.to_string());
        }
    }

    /// The driver has kicked queue `index`.
    pub fn kick(&mut self, index: usize) {
        self.lend(|device, lent| device.kick(index, lent));
    }

    /// A host descriptor of the device fired.
    pub fn ready(&mut self) {
        self.lend(|device, lent| device.ready(lent));
    }

    /// Kicks every queue through its eventfd: whatever was missed is found.
    fn touch(&self) {
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
    }

    /// Finishes what is under way, then holds still until [`thaw`](Self::thaw). vCPUs are stopped.
    pub fn freeze(&mut self) {
        self.lend(|device, lent| device.drain(lent));
        self.frozen = true;
    }

    /// The name of the disk that the device is.
    pub fn drive(&self) -> Option<&str> {
        self.device.drive()
    }

    /// Freezes what the device keeps on the host; see [`VirtioDevice::freeze`].
    pub fn freeze_contents(&mut self) -> Result<Option<(String, disk::Contents)>, super::Error> {
        self.device.freeze()
    }

    /// Puts the device's disk on another base; see [`VirtioDevice::stand_on`].
    pub fn stand_on(&mut self, base: disk::Base, above: usize) -> bool {
        self.device.stand_on(base, above)
    }

    /// Moves on after [`freeze`](Self::freeze) or after a stall: everything is looked at once.
    pub fn thaw(&mut self) {
        self.frozen = false;
        self.lend(|device, lent| device.retry(lent));
        self.lend(|device, lent| device.ready(lent));
        self.touch();
    }
}
