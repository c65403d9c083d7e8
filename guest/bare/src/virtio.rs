//! A driver for virtio devices: the registers of the MMIO transport (virtio 1.2, 4.2.2) and the split
//! queue (2.7).

use crate::memory::{PAGE, Shared, pages};
use crate::{Failure, Result, apic, check, cmdline, cpu, interrupts};

pub const MAGIC: u64 = 0x000;
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
pub const QUEUE_SELECT: u64 = 0x030;
pub const QUEUE_SIZE_MAX: u64 = 0x034;
pub const QUEUE_SIZE: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESCRIPTORS: u64 = 0x080;
pub const QUEUE_AVAILABLE: u64 = 0x090;
pub const QUEUE_USED: u64 = 0x0a0;
pub const CONFIG_GENERATION: u64 = 0x0fc;
pub const CONFIG: u64 = 0x100;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

const CONFIG_CHANGED: u32 = 2;

pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

/// Device IDs (virtio 1.2, section 5).
pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;
pub const ENTROPY: u32 = 4;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;

/// Where rvmm puts its devices: slot `i` at `SLOTS + i * SLOT_SIZE`, with GSI `SLOT_GSI + i`.
const SLOTS: u64 = 0xd000_0000;
const SLOT_SIZE: u64 = 0x1000;
const SLOT_GSI: u64 = 6;
const MAX_SLOTS: u64 = 18;

const MAGIC_VALUE: u32 = 0x7472_6976;

/// A device that answers to the transport's registers.
#[derive(Clone, Copy)]
pub struct Device {
    pub registers: Shared,
    pub id: u32,
    gsi: u8,
    features: u64,
}

impl Device {
    /// The device at `base=`, with `gsi=`, or else in `slot=`, or else the first slot with such a device.
    /// An `id` of 0 means any.
    pub fn find(id: u32) -> Result<Device> {
        let slots = match (cmdline::value("base"), cmdline::value("slot")) {
            (None, None) => 0..MAX_SLOTS,
            _ => cmdline::number("slot", 0)..cmdline::number("slot", 0) + 1,
        };
        for slot in slots {
            let base = cmdline::number("base", SLOTS + slot * SLOT_SIZE);
            let gsi =
                cmdline::number("gsi", SLOT_GSI + (base.wrapping_sub(SLOTS) / SLOT_SIZE) % MAX_SLOTS) as u8;
            // SAFETY: device registers, by rvmm's memory layout or by the command line; never RAM of the
            // guest.
            let registers = unsafe { Shared::new(base) };
            check("the magic of a virtio device", registers.read32(MAGIC), MAGIC_VALUE)?;
            let found = registers.read32(DEVICE_ID);
            if id == 0 && found != 0 || found == id {
                check("the version of a virtio device", registers.read32(VERSION), 2u32)?;
                return Ok(Device { registers, id: found, gsi, features: 0 });
            }
        }
        Err(Failure { reason: "no such virtio device", got: 0, wanted: id.into() })
    }

    /// Resets the device and agrees with it on those of `wanted` that it offers, with what the command
    /// line adds: `indirect`, `event_idx`.
    pub fn begin(&mut self, wanted: u64) -> Result<u64> {
        let mut wanted = wanted | VERSION_1;
        for (flag, feature) in [("indirect", INDIRECT_DESC), ("event_idx", EVENT_IDX)] {
            if cmdline::flag(flag) {
                wanted |= feature;
            }
        }
        self.set_status(0);
        check("the status of a virtio device after reset", self.status(), 0u32)?;
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.registers.write32(DEVICE_FEATURES_SELECT, 1);
        let high = self.registers.read32(DEVICE_FEATURES);
        self.registers.write32(DEVICE_FEATURES_SELECT, 0);
        let offered = u64::from(high) << 32 | u64::from(self.registers.read32(DEVICE_FEATURES));
        check("a virtio device offers VERSION_1", offered & VERSION_1, VERSION_1)?;
        self.features = offered & wanted;
        self.registers.write32(DRIVER_FEATURES_SELECT, 1);
        self.registers.write32(DRIVER_FEATURES, (self.features >> 32) as u32);
        self.registers.write32(DRIVER_FEATURES_SELECT, 0);
        self.registers.write32(DRIVER_FEATURES, self.features as u32);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        check("a virtio device takes the features", self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
        Ok(self.features)
    }

    /// Routes the device's interrupt to this CPU, with a watchdog beside it, unless the command line has
    /// `poll`.
    pub fn route(&self) -> Irq {
        let vector = (!cmdline::flag("poll")).then(|| {
            apic::enable();
            apic::start_watchdog();
            apic::route(self.gsi)
        });
        Irq { device: *self, vector, seen: 0 }
    }

    /// Gives the device a queue of `size` entries, or fewer if its limit is lower.
    pub fn queue(&self, index: u16, size: u16) -> Result<Queue> {
        let queue = self.set_up(index, size, |addresses| addresses)?;
        check("a queue is ready once the driver says so", self.registers.read32(QUEUE_READY), 1u32)?;
        Ok(queue)
    }

    /// Sets a queue up like [`queue`](Self::queue), but tells the device what `alter` makes of the three
    /// addresses.
    pub fn set_up(&self, index: u16, size: u16, alter: impl FnOnce([u64; 3]) -> [u64; 3]) -> Result<Queue> {
        let registers = self.registers;
        registers.write32(QUEUE_SELECT, index.into());
        check("a queue is ready before the driver has set it up", registers.read32(QUEUE_READY), 0u32)?;
        let size = size.min(registers.read32(QUEUE_SIZE_MAX) as u16);
        check("the size limit of a queue is 0", size == 0, false)?;
        registers.write32(QUEUE_SIZE, size.into());
        let queue = Queue::new(*self, index, size);
        let addresses = alter([queue.descriptors.address(), queue.available.address(), queue.used.address()]);
        for (register, address) in [QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED].into_iter().zip(addresses)
        {
            registers.write32(register, address as u32);
            registers.write32(register + 4, (address >> 32) as u32);
        }
        registers.write32(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Says that the driver is ready.
    pub fn go(&self) -> Result {
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.set_status(status);
        check("the status of a running virtio device", self.status(), status)
    }

    pub fn status(&self) -> u32 {
        self.registers.read32(STATUS)
    }

    pub fn set_status(&self, status: u32) {
        self.registers.write32(STATUS, status);
    }

    /// Eight bytes of the configuration space, as two accesses of four (virtio 1.2, 4.2.2.2).
    pub fn config64(&self, offset: u64) -> u64 {
        let low = self.registers.read32(CONFIG + offset);
        u64::from(self.registers.read32(CONFIG + offset + 4)) << 32 | u64::from(low)
    }
}

/// The interrupt of a device, or with `poll` the lack of it.
pub struct Irq {
    device: Device,
    vector: Option<u8>,
    seen: u64,
}

impl Irq {
    /// Waits for one interrupt after the other (or spins) until `attempt` succeeds. What completes before
    /// its interrupt still waits for it, so that an interrupt that never comes is noticed.
    pub fn until<T>(&mut self, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
        let registers = self.device.registers;
        let mut found = None;
        let Some(vector) = self.vector else {
            interrupts::spin(|| {
                found = attempt();
                found.is_some()
            });
            return found.ok_or(self.failure("no completion, polling"));
        };
        loop {
            if !interrupts::wait(|| interrupts::count(vector) > self.seen) {
                let done = attempt().is_some();
                return Err(self.failure(if done {
                    "a completion without interrupt"
                } else {
                    "no completion"
                }));
            }
            self.seen = interrupts::count(vector);
            let cause = registers.read32(INTERRUPT_STATUS);
            registers.write32(INTERRUPT_ACK, cause);
            found = attempt();
            if let Some(found) = found {
                return Ok(found);
            }
            if cause & CONFIG_CHANGED != 0 && self.device.status() & NEEDS_RESET != 0 {
                return Err(self.failure("the device needs a reset"));
            }
        }
    }

    fn failure(&self, reason: &'static str) -> Failure {
        Failure { reason, got: self.device.status().into(), wanted: RUNNING.into() }
    }

    /// How many interrupts have come.
    pub fn count(&self) -> u64 {
        self.vector.map_or(0, interrupts::count)
    }
}

/// One piece of a request: memory that the device reads, or writes if `writable`.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub size: u32,
    pub writable: bool,
}

pub fn readable(memory: Shared, size: u64) -> Buffer {
    Buffer { address: memory.address(), size: size as u32, writable: false }
}

pub fn writable(memory: Shared, size: u64) -> Buffer {
    Buffer { address: memory.address(), size: size as u32, writable: true }
}

/// What the device says of a request that is done.
pub struct Used {
    pub head: u16,
    pub written: u32,
}

/// A split queue. The parts are public, so that a test can abuse them.
pub struct Queue {
    device: Device,
    index: u16,
    pub size: u16,
    pub descriptors: Shared,
    pub available: Shared,
    pub used: Shared,
    tables: Option<Shared>,
    added: u16,
    kicked: u16,
    taken: u16,
}

impl Queue {
    fn new(device: Device, index: u16, size: u16) -> Queue {
        let entries = u64::from(size);
        let rings = (6 + 2 * entries).div_ceil(PAGE);
        let queue = Queue {
            device,
            index,
            size,
            descriptors: pages((16 * entries).div_ceil(PAGE)),
            available: pages(rings),
            used: pages((6 + 8 * entries).div_ceil(PAGE)),
            tables: (device.features & INDIRECT_DESC != 0).then(|| pages(1)),
            added: 0,
            kicked: 0,
            taken: 0,
        };
        if cmdline::flag("poll") {
            queue.available.write16(0, NO_INTERRUPT);
        }
        queue
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        describe(self.descriptors, index, buffer, flags, next);
    }

    /// Makes a request available that uses the descriptors from `head` on: as many as it has pieces, or
    /// one with an indirect table.
    pub fn add(&mut self, head: u16, buffers: &[Buffer]) {
        let (table, first) = match self.tables {
            Some(tables) => (tables.at(u64::from(head) * 64), 0),
            None => (self.descriptors, head),
        };
        for (index, buffer) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            describe(table, index, *buffer, if last { 0 } else { NEXT }, if last { 0 } else { index + 1 });
        }
        if self.tables.is_some() {
            self.describe(head, readable(table, 16 * buffers.len() as u64), INDIRECT, 0);
        }
        self.offer(head);
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, head: u16) {
        self.available.write16(4 + 2 * u64::from(self.added % self.size), head);
        self.added = self.added.wrapping_add(1);
        self.available.write16(2, self.added);
    }

    /// Tells the device about what has been added, if it wants to know.
    pub fn kick(&mut self) {
        cpu::fence();
        let wanted = if self.device.features & EVENT_IDX != 0 {
            let event = self.used.read16(4 + 8 * u64::from(self.size));
            self.added.wrapping_sub(event).wrapping_sub(1) < self.added.wrapping_sub(self.kicked)
        } else {
            self.used.read16(0) & 1 == 0
        };
        self.kicked = self.added;
        if wanted {
            self.notify();
        }
    }

    /// Writes the notification register.
    pub fn notify(&self) {
        self.device.registers.write32(QUEUE_NOTIFY, self.index.into());
    }

    /// The next request that the device is done with, if there is one.
    pub fn take(&mut self) -> Option<Used> {
        if self.used.read16(2) == self.taken {
            return None;
        }
        let element = self.used.at(4 + 8 * u64::from(self.taken % self.size));
        self.taken = self.taken.wrapping_add(1);
        if self.device.features & EVENT_IDX != 0 {
            self.available.write16(4 + 2 * u64::from(self.size), self.taken);
        }
        Some(Used { head: element.read32(0) as u16, written: element.read32(4) })
    }

    /// One request, from `add` to completion; gives how many bytes the device says it wrote.
    pub fn request(&mut self, irq: &mut Irq, buffers: &[Buffer]) -> Result<u32> {
        self.add(0, buffers);
        self.kick();
        let used = irq.until(|| self.take())?;
        check("the head of the chain that is done", used.head, 0u16)?;
        Ok(used.written)
    }
}

/// Writes a descriptor into a table: `flags` beside what the buffer's direction says.
pub fn describe(table: Shared, index: u16, buffer: Buffer, flags: u16, next: u16) {
    let descriptor = table.at(u64::from(index) * 16);
    descriptor.write64(0, buffer.address);
    descriptor.write32(8, buffer.size);
    descriptor.write16(12, flags | if buffer.writable { WRITE } else { 0 });
    descriptor.write16(14, next);
}
