//! A link whose other side is the test, and a driver for the device between them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::Function;
use crate::devices::virtio::mock::Driver;

#[derive(Default)]
pub struct State {
    /// On their way to the guest, header first.
    pub incoming: VecDeque<Vec<u8>>,
    pub sent: Vec<Vec<u8>>,
    pub dropped: usize,
    pub full: bool,
    pub broken: bool,
    /// Whenever it is looked at, some frames wait.
    pub busy: bool,
    pub woken: usize,
    pub offloads: Offloads,
}

/// A link whose other side is the test.
#[derive(Clone)]
pub struct Wire {
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
}

impl Wire {
    pub fn new() -> Self {
        Wire { state: Arc::default(), event: Arc::new(EventFd::new(0).unwrap()) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many frames still wait, and how many were lost.
    pub fn left(&self) -> (usize, usize) {
        let state = self.state();
        (state.incoming.len(), state.dropped)
    }

    pub fn check(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.broken { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(state) }
    }
}

impl Link for Wire {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn start(&mut self, offloads: Offloads) -> io::Result<()> {
        self.state().offloads = offloads;
        Ok(())
    }
    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn wake(&mut self) -> io::Result<()> {
        let mut state = self.check()?;
        state.woken += 1;
        if state.busy {
            state.incoming.resize(10, frame(100, 7));
        }
        Ok(())
    }
    fn room(&mut self) -> io::Result<Option<usize>> {
        Ok(self.check()?.incoming.front().map(Vec::len))
    }
    fn receive(&mut self, buffers: &Buffers) -> io::Result<Received> {
        let mut state = self.check()?;
        let Some(frame) = state.incoming.pop_front() else { return Ok(Received::Nothing) };
        if buffers.write_at(0, &frame) < frame.len() {
            state.dropped += 1;
            return Ok(Received::Dropped);
        }
        Ok(Received::Frame(frame.len()))
    }
    fn send(&mut self, frame: &Buffers) -> io::Result<bool> {
        let mut state = self.check()?;
        if state.full {
            return Ok(false);
        }
        let mut bytes = vec![0; frame.len()];
        frame.read_at(0, &mut bytes);
        state.sent.push(bytes);
        Ok(true)
    }
}

pub fn net(wire: &Wire, mac: &str) -> Box<Net> {
    Box::new(Net::new("eth0".into(), mac.parse().unwrap(), Box::new(wire.clone())))
}

pub fn machine(features: u64) -> (Wire, Guest) {
    let wire = Wire::new();
    let guest = Guest::new(net(&wire, "02:00:00:00:00:07"), features);
    wire.state().woken = 0;
    (wire, guest)
}

/// A driver that posts without a kick, and looks into what came back.
pub struct Guest {
    pub driver: Driver,
    /// Where the receive chains lie, by head.
    places: Vec<Vec<(u64, usize)>>,
}

impl Guest {
    pub fn new(device: Box<dyn VirtioDevice>, features: u64) -> Self {
        let mut driver = Driver::new(device);
        driver.start(features | 1 << 32);
        driver.interrupted();
        Guest { driver, places: vec![Vec::new(); 256] }
    }

    pub fn function(&self) -> MutexGuard<'_, Function> {
        self.driver.function.lock().unwrap()
    }

    /// Puts a frame into the transmit queue, in pieces.
    pub fn transmit(&mut self, pieces: &[&[u8]]) {
        self.driver.post(TRANSMIT, pieces, &[]);
    }

    /// Puts a chain of buffers of these sizes into the receive queue; returns its head.
    pub fn give(&mut self, sizes: &[usize]) -> u16 {
        let (head, places) = self.driver.post(RECEIVE, &[], sizes);
        self.places[usize::from(head)] = places;
        head
    }

    /// One kick, and nothing that the device may want to do afterwards.
    pub fn kick(&self, queue: usize) {
        self.function().kick(queue);
    }

    pub fn ready(&self) {
        self.function().ready();
    }

    /// What came back since the last call: heads with the bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.driver.used(queue)).map(|used| (used.head, used.len)).collect()
    }

    /// The first `len` bytes of a receive chain.
    pub fn received(&self, head: u16, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(address, room) in &self.places[usize::from(head)] {
            let mut piece = vec![0; room];
            self.driver.memory.read_slice(&mut piece, GuestAddress(address)).unwrap();
            bytes.extend(piece);
        }
        bytes.truncate(len as usize);
        bytes
    }

    /// Which queues the device has kicked itself since the last call.
    pub fn kicked_again(&self) -> [bool; 2] {
        [0, 1].map(|queue: usize| self.function().kicks()[queue].read().is_ok())
    }

    pub fn config(&self) -> Vec<u8> {
        self.function().device().config().to_vec()
    }
}
