//! A driver for tests: it sets a device up through its registers and moves bytes through rings written by hand
//! (virtio 1.2, sections 2.7, 3.1 and 4.2).
//!
//! ```text
//! 0           0x1_0000 per queue               0x10_0000          0x20_0000 … 0x40_0000      0x50_0000
//! ├─ nothing ─┼─ descriptors, available, used ─┼─ buffers ────────┤      (no RAM)    ├─ RAM ─┤
//! ```

pub mod hostile;

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::mmio::{self, Mmio};
use super::{Context, Function, VirtioDevice};
use crate::bus::BusDevice;
use crate::memory::{Memory, Pages, allocate};
use crate::notice::Notifier;
use crate::snapshot::{Persist, Saved};
use crate::testing::PATIENCE;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where the buffers of requests lie.
pub const BUFFERS: u64 = 0x10_0000;
const BUFFERS_END: u64 = 0x20_0000;
/// RAM behind a hole.
pub const HIGH: u64 = 0x40_0000;
pub const RAM: [(u64, u64); 2] = [(0, BUFFERS_END), (HIGH, 0x10_0000)];

/// One queue as the driver sees it.
#[derive(Clone, Debug)]
pub struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_available: u16,
    last_used: u16,
    next_descriptor: u16,
}

/// A chain that the device gave back.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub len: u32,
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes the device says it wrote.
    pub len: u32,
    /// The whole writable part.
    pub bytes: Vec<u8>,
}

pub struct Driver {
    pub memory: Arc<Memory>,
    pub function: Arc<Mutex<Function>>,
    pub registers: Mmio,
    pub rings: Vec<Ring>,
    /// The device's own descriptors, watched for edges as its worker does; none if it has none.
    events: Option<Epoll>,
    next_buffer: u64,
}

impl Driver {
    /// A driver for `device`, which it has not touched yet.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len));
        let memory = Arc::new(allocate(&ranges, Pages::Transparent).unwrap());
        let events = watched(&device.events());
        let function = Arc::new(Mutex::new(Function::new(device, &memory).unwrap()));
        let registers = Mmio::new(&function);
        Driver { memory, function, registers, rings: Vec::new(), events, next_buffer: BUFFERS }
    }

    /// A driver that has set `device` up with everything it offers.
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Driver::new(device);
        driver.start(u64::MAX);
        driver
    }

    /// The same machine after a restore: the guest's memory as it is here, around the device of `fresh`.
    pub fn restored(self, fresh: Driver, saved: &Saved) -> Self {
        for (start, len) in RAM {
            let mut bytes = vec![0; len as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
            fresh.memory.write_slice(&bytes, GuestAddress(start)).unwrap();
        }
        fresh.function.lock().unwrap().reset();
        fresh.function.lock().unwrap().load(saved).unwrap();
        fresh.work();
        Driver { rings: self.rings, next_buffer: self.next_buffer, ..fresh }
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.registers.write(register, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.registers.read(0x100 + offset, &mut data);
        data
    }

    pub fn offered(&self) -> u64 {
        self.write(0x14, 1);
        let high = u64::from(self.read(0x10)) << 32;
        self.write(0x14, 0);
        high | u64::from(self.read(0x10))
    }

    /// Resets the device and chooses those of `features` that it offers.
    pub fn negotiate(&mut self, features: u64) {
        self.write(0x70, 0);
        self.rings.clear();
        self.next_buffer = BUFFERS;
        self.write(0x70, ACKNOWLEDGE);
        self.write(0x70, ACKNOWLEDGE | DRIVER);
        let features = features & self.offered();
        for word in 0..2 {
            self.write(0x24, word);
            self.write(0x20, (features >> (32 * word)) as u32);
        }
        self.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK, "features were refused");
    }

    /// Brings the device from reset to running, with rings of the largest size up to 256.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        let queues = self.function.lock().unwrap().kicks().len();
        for index in 0..queues {
            self.write(0x30, index as u32);
            let size = self.read(0x34).min(256) as u16;
            let base = 0x1_0000 * (index as u64 + 1);
            let ring = Ring {
                size,
                descriptors: base,
                available: base + 0x4000,
                used: base + 0x8000,
                next_available: 0,
                last_used: 0,
                next_descriptor: 0,
            };
            assert!(base + 0x1_0000 <= BUFFERS, "too many queues for this driver");
            self.memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
            self.set_ring(index as u32, &ring);
            self.rings.push(ring);
        }
        self.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.work();
    }

    /// Tells the device where a queue is and that it is ready.
    pub fn set_ring(&self, index: u32, ring: &Ring) {
        self.write(0x30, index);
        self.write(0x38, ring.size.into());
        for (register, address) in [(0x80, ring.descriptors), (0x90, ring.available), (0xa0, ring.used)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Writes descriptor `index` of a table.
    pub fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = ring.available + 4 + 2 * u64::from(ring.next_available % ring.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        ring.next_available = ring.next_available.wrapping_add(1);
        self.memory.write_obj(ring.next_available, GuestAddress(ring.available + 2)).unwrap();
    }

    /// Kicks a queue and lets the device work.
    pub fn kick(&self, queue: usize) {
        self.write(mmio::QUEUE_NOTIFY, queue as u32);
        self.work();
    }

    /// Does what the device's worker does, until there is nothing to do at once.
    pub fn work(&self) {
        self.wait(Duration::ZERO);
    }

    /// Waits up to `limit` for something on the host to happen to the device, and lets it work.
    pub fn wait(&self, limit: Duration) {
        let mut fired = self.fired(limit);
        let mut function = self.function.lock().unwrap();
        for _ in 0..10_000 {
            let kicked: Vec<_> =
                (0..function.kicks().len()).filter(|&i| function.kicks()[i].read().is_ok()).collect();
            if kicked.is_empty() && !fired {
                return;
            }
            for index in kicked {
                function.kick(index);
            }
            if self.events.is_some() {
                function.ready();
            }
            fired = self.fired(Duration::ZERO);
        }
        panic!("the device always finds more to do");
    }

    /// Waits for an edge on one of the device's descriptors.
    fn fired(&self, limit: Duration) -> bool {
        let Some(epoll) = &self.events else {
            std::thread::sleep(limit);
            return false;
        };
        let mut found = [EpollEvent::default(); 8];
        epoll.wait(limit.as_millis() as i32, &mut found).unwrap_or(0) > 0
    }

    /// The next chain that came back.
    pub fn used(&mut self, queue: usize) -> Option<Used> {
        let ring = &mut self.rings[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(ring.used + 2)).unwrap();
        if index == ring.last_used {
            return None;
        }
        let slot = ring.used + 4 + 8 * u64::from(ring.last_used % ring.size);
        ring.last_used = ring.last_used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        // Interrupt again for the next one.
        self.memory
            .write_obj(ring.last_used, GuestAddress(ring.available + 4 + 2 * u64::from(ring.size)))
            .unwrap();
        Some(Used { head: head as u16, len })
    }

    /// Room for `len` bytes.
    pub fn buffer(&mut self, len: usize) -> u64 {
        if self.next_buffer + len as u64 > BUFFERS_END {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += len as u64;
        address
    }

    /// Posts a chain and kicks.
    pub fn submit(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> (u16, Vec<(u64, usize)>) {
        let posted = self.post(queue, readable, writable);
        self.kick(queue);
        posted
    }

    /// Writes a chain of `readable` buffers and a writable part cut into `writable` lengths, and makes it
    /// available. Returns the head and where the writable parts are.
    pub fn post(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> (u16, Vec<(u64, usize)>) {
        let mut parts = Vec::new();
        for bytes in readable {
            let address = self.buffer(bytes.len());
            self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            parts.push((address, bytes.len(), 0));
        }
        let places: Vec<_> = writable.iter().map(|&len| (self.buffer(len), len)).collect();
        parts.extend(places.iter().map(|&(address, len)| (address, len, WRITE)));
        let ring = &mut self.rings[queue];
        let (table, size, head) = (ring.descriptors, ring.size, ring.next_descriptor);
        ring.next_descriptor = (head + parts.len() as u16) % size;
        for (i, &(address, len, flags)) in parts.iter().enumerate() {
            let more = if i + 1 < parts.len() { NEXT } else { 0 };
            let index = (head + i as u16) % size;
            self.descriptor(table, index, address, len as u32, flags | more, (index + 1) % size);
        }
        self.offer(queue, head);
        (head, places)
    }

    /// One request, done when it returns. The device must answer it next.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable_len: usize) -> Reply {
        self.try_request(queue, readable, writable_len).expect("the device did not answer")
    }

    /// One request; `None` if the device needs a reset or does not answer.
    pub fn try_request(&mut self, queue: usize, readable: &[&[u8]], writable_len: usize) -> Option<Reply> {
        let writable = if writable_len > 0 { &[writable_len][..] } else { &[] };
        let (head, places) = self.submit(queue, readable, writable);
        let end = Instant::now() + PATIENCE;
        let used = loop {
            match self.used(queue) {
                Some(used) => break used,
                None if self.needs_reset() || Instant::now() > end => return None,
                None => self.wait(Duration::from_millis(10)),
            }
        };
        assert_eq!(used.head, head, "another chain came back");
        let mut bytes = vec![0; writable_len];
        if let Some(&(address, _)) = places.first() {
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        }
        Some(Reply { len: used.len, bytes })
    }

    /// Whether the device interrupted since the last call.
    pub fn interrupted(&self) -> bool {
        let function = self.function.lock().unwrap();
        function.interrupt().line().eventfd().read().is_ok()
    }
}

/// What a device is made in, for tests that make it from its configuration.
pub fn context() -> Context {
    Context { notifier: Notifier::new(|_| ()), index: 0, directory: None, portable: false }
}

/// Watches `descriptors` for edges.
fn watched(descriptors: &[RawFd]) -> Option<Epoll> {
    let epoll = Epoll::new().unwrap();
    let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
    for &descriptor in descriptors {
        epoll.ctl(ControlOperation::Add, descriptor, EpollEvent::new(edges, 0)).unwrap();
    }
    (!descriptors.is_empty()).then_some(epoll)
}
