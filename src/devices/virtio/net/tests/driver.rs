//! The driver's side of two virtqueues (virtio 1.2, sections 2.7 and 5.1.6), as small as it can be.

use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::{Function, VirtioDevice};
use crate::memory::Memory;

const SIZE: u16 = 256;
/// Where the rings of the first queue lie; those of the second follow after `STEP`.
const RINGS: u64 = 0x10000;
const STEP: u64 = 0x10000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers lie, one after the other.
const BUFFERS: u64 = 1 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[derive(Clone, Copy, Default)]
struct Ring {
    descriptor: u16,
    available: u16,
    used: u16,
}

/// A driver that has reached DRIVER_OK.
pub struct Driver {
    pub function: Function,
    memory: Arc<Memory>,
    rings: [Ring; 2],
    free: u64,
    /// The pieces of the chains in the receive queue, by head.
    chains: Vec<Vec<(u64, u32)>>,
}

impl Driver {
    pub fn new(device: Box<dyn VirtioDevice>, memory: &Arc<Memory>, features: u64) -> Self {
        let function = Function::new(device, memory).unwrap();
        let chains = vec![Vec::new(); usize::from(SIZE)];
        let memory = Arc::clone(memory);
        let mut driver = Driver { function, memory, rings: Default::default(), free: BUFFERS, chains };
        driver.start(features);
        driver
    }

    /// Initialises the device, which was reset.
    pub fn start(&mut self, features: u64) {
        let function = &mut self.function;
        function.set_status(3);
        let features = features | 1 << 32;
        function.choose_features(0, features as u32);
        function.choose_features(1, (features >> 32) as u32);
        function.set_status(0xb);
        assert_eq!(function.status(), 0xb, "the features were refused");
        for index in 0..2 {
            let rings = RINGS + STEP * u64::from(index);
            self.memory.write_slice(&[0; STEP as usize], GuestAddress(rings)).unwrap();
            function.selectors.queue = index;
            let queue = function.queue().unwrap();
            queue.set_size(SIZE);
            queue.set_desc_table_address(Some(rings as u32), Some(0));
            queue.set_avail_ring_address(Some((rings + AVAILABLE) as u32), Some(0));
            queue.set_used_ring_address(Some((rings + USED) as u32), Some(0));
            queue.set_ready(true);
        }
        function.set_status(0xf);
        self.rings = Default::default();
        self.pending_kicks();
        self.interrupted();
    }

    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub fn status(&self) -> u32 {
        self.function.status()
    }

    fn buffer(&mut self, len: u32) -> u64 {
        let address = self.free;
        // Pieces never touch.
        self.free += u64::from(len) + 3;
        address
    }

    fn post(&mut self, queue: usize, pieces: &[(u64, u32)], flags: u16) -> u16 {
        let rings = RINGS + STEP * queue as u64;
        let ring = &mut self.rings[queue];
        let head = ring.descriptor % SIZE;
        for (i, &(address, len)) in pieces.iter().enumerate() {
            let last = i + 1 == pieces.len();
            let index = ring.descriptor % SIZE;
            ring.descriptor = ring.descriptor.wrapping_add(1);
            let at = GuestAddress(rings + 16 * u64::from(index));
            let flags = flags | if last { 0 } else { NEXT };
            self.memory.write_obj(address, at).unwrap();
            self.memory.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            self.memory.write_obj((index + 1) % SIZE, GuestAddress(at.0 + 14)).unwrap();
        }
        let available = rings + AVAILABLE;
        let slot = u64::from(ring.available % SIZE);
        self.memory.write_obj(head, GuestAddress(available + 4 + 2 * slot)).unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.memory.write_obj(ring.available, GuestAddress(available + 2)).unwrap();
        head
    }

    /// Puts a frame into the transmit queue, in pieces.
    pub fn transmit(&mut self, pieces: &[&[u8]]) {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let address = self.buffer(piece.len() as u32);
                self.memory.write_slice(piece, GuestAddress(address)).unwrap();
                (address, piece.len() as u32)
            })
            .collect();
        self.post(1, &pieces, 0);
    }

    /// Puts one chain of buffers of these sizes into the receive queue; returns its head.
    pub fn give(&mut self, sizes: &[u32]) -> u16 {
        let pieces: Vec<_> = sizes.iter().map(|&len| (self.buffer(len), len)).collect();
        let head = self.post(0, &pieces, WRITE);
        self.chains[usize::from(head)] = pieces;
        head
    }

    /// The first `len` bytes of a receive chain.
    pub fn received(&self, head: u16, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(address, room) in &self.chains[usize::from(head)] {
            let mut piece = vec![0; room as usize];
            self.memory.read_slice(&mut piece, GuestAddress(address)).unwrap();
            bytes.extend(piece);
        }
        bytes.truncate(len as usize);
        bytes
    }

    pub fn kick(&mut self, queue: usize) {
        self.function.kick(queue);
    }

    /// What came back since the last call: heads with the bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let used = RINGS + STEP * queue as u64 + USED;
        let end: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let mut found = Vec::new();
        let ring = &mut self.rings[queue];
        while ring.used != end {
            let at = used + 4 + 8 * u64::from(ring.used % SIZE);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            found.push((head as u16, self.memory.read_obj(GuestAddress(at + 4)).unwrap()));
            ring.used = ring.used.wrapping_add(1);
        }
        found
    }

    /// Whether there was an interrupt since the last call.
    pub fn interrupted(&mut self) -> bool {
        let interrupt = self.function.interrupt();
        let status = interrupt.status();
        interrupt.acknowledge(status);
        status != 0
    }

    /// How often the device kicked its own queues since the last call, as 0 or 1.
    pub fn pending_kicks(&self) -> [u64; 2] {
        [0, 1].map(|queue: usize| self.function.kicks()[queue].read().unwrap_or(0))
    }
}

/// A frame of `len` bytes, its header included: zeroes, then bytes that depend on `seed`.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| if i < crate::net::HEADER { 0 } else { (i as u8).wrapping_mul(31).wrapping_add(seed) })
        .collect()
}
