//! Socket device (virtio 1.2, section 5.10): streams of bytes between ports of the guest and unix sockets of the host,
//! by Firecracker's convention.
//!
//! ```text
//!   client ──► uds_path, CONNECT 1024 ──┐                                   ┌─ receive queue ──► guest, port 1024
//!                                       ├── exchange.rs: connections, turns ┤
//!   service at uds_path_P ◄─────────────┘                                   └─ transmit queue ◄─ guest, to CID 2, port P
//! ```
//!
//! Connections do not outlive the process: when a machine is restored, all of them are gone and the guest is told so
//! by an event. Until its driver has acted on it (it gives the event's buffer back then), nothing else is sent, however long
//! that takes: the driver would take a new connection for one of the old, and end it without a word to this side.
//!
//! ```text
//!   open ── load ──► to tell ── event given ──► told ── buffer is back ──► open
//! ```

mod burst;
mod config;
mod connection;
mod credit;
mod exchange;
mod greeting;
mod listener;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Chain, Lent, VirtioDevice, Violation};
use crate::snapshot::{self, Persist, Saved};

pub use config::{Config, SOCKET};
use exchange::Exchange;
use listener::Listener;

/// The type of the device.
const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

/// Whether a guest's driver uses the device that this is the state of, and the device is a vsock device.
pub fn is_driven(saved: &Saved) -> bool {
    super::is_driven(saved, ID)
}

/// The queue that packets come to the guest by.
const RECEIVE: usize = 0;

/// The queue that the guest's packets go out by.
const TRANSMIT: usize = 1;

/// The queue that events come by.
const EVENT: usize = 2;

/// Packets that are moved in one direction before others have their turn.
const BATCH: usize = 64;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// Whether the guest knows that its connections are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    /// It knows.
    Known,
    /// It has to be told.
    ToTell,
    /// It was told when it had so many event buffers.
    Told(usize),
}

struct Vsock {
    exchange: Exchange,
    /// The guest's address (`struct virtio_vsock_config`, 5.10.4).
    config: [u8; 8],
    reset: Reset,
}

impl Vsock {
    fn new(listener: Listener, guest_cid: u32) -> io::Result<Self> {
        let exchange = Exchange::new(listener, guest_cid.into())?;
        let config = u64::from(guest_cid).to_le_bytes();
        Ok(Vsock { exchange, config, reset: Reset::Known })
    }

    /// Tells the guest that its connections are gone, or finds that it has understood.
    fn event(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        if self.reset == Reset::Known {
            return Ok(());
        }
        // All buffers are taken, so that the driver kicks when it gives the next one.
        let mut chains: Vec<Chain> = Vec::new();
        while let Some(chain) = lent.take(EVENT)? {
            chains.push(chain);
        }
        let count = chains.len();
        let mut chains = chains.into_iter();
        match self.reset {
            Reset::ToTell => {
                if let Some(chain) = chains.next() {
                    let written = chain.writable.write_at(0, &TRANSPORT_RESET.to_le_bytes());
                    lent.give(EVENT, chain.head, written as u32)?;
                    self.reset = Reset::Told(count);
                }
            }
            Reset::Told(before) if count >= before => self.reset = Reset::Known,
            _ => {}
        }
        for _ in chains {
            lent.put_back(EVENT);
        }
        Ok(())
    }

    /// Moves whatever can be moved.
    fn work(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        self.exchange.poll();
        self.transmit(lent)?;
        if self.reset == Reset::Known {
            let was_full = self.exchange.is_full();
            self.exchange.send(lent)?;
            if was_full && !self.exchange.is_full() {
                lent.again(TRANSMIT);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        for _ in 0..BATCH {
            if self.exchange.is_full() {
                return Ok(());
            }
            let Some(chain) = lent.take(TRANSMIT)? else { return Ok(()) };
            self.exchange.packet(&chain.readable);
            lent.give(TRANSMIT, chain.head, 0)?;
        }
        lent.again(TRANSMIT);
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn events(&self) -> Vec<RawFd> {
        vec![self.exchange.as_raw_fd()]
    }

    fn kick(&mut self, index: usize, lent: &mut Lent) -> Result<(), Violation> {
        if index == EVENT {
            self.event(lent)?;
        }
        self.work(lent)
    }

    fn ready(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        self.work(lent)
    }

    fn reset(&mut self) {
        self.exchange.clear();
        self.reset = Reset::Known;
    }
}

const KIND: &str = "virtio-vsock";
const VERSION: u32 = 1;

/// Nothing of the device outlives it: connections end, and the address is what the configuration says.
impl Persist for Vsock {
    fn save(&self) -> Saved {
        Saved::pack(KIND, VERSION, &())
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        saved.unpack::<()>(KIND, VERSION)?;
        self.exchange.clear();
        self.reset = Reset::ToTell;
        Ok(())
    }
}
