//! Network device (virtio 1.2, section 5.1): moves frames between the guest's driver and a link of the host.
//!
//! ```text
//!    receive queue ◄── chains gathered, frame read straight into them ◄── room, receive ──┐
//!                                                                                       link
//!   transmit queue ──► frame written straight from the chain ────────────► send ──────────┘
//! ```
//!
//! The link's descriptor is watched for edges, so whatever wakes the device, both directions are worked until
//! they would block, or until a batch is done: then the queue is kicked again after others had their turn.

mod config;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use log::error;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::{Chain, Lent, VirtioDevice, Violation};
use crate::memory::{Buffers, MAX_PIECES};
use crate::net::{HEADER, Link, MAX_FRAME, MIN_FRAME, Mac, Offloads, Received};

pub use config::Config;

/// The queue that frames come in by.
const RECEIVE: usize = 0;

/// The queue that frames go out by.
const TRANSMIT: usize = 1;

/// Frames that are moved in one direction before others have their turn.
const BATCH: usize = 64;

/// Where the number of merged buffers stands in a frame's header.
const NUM_BUFFERS: usize = 10;

/// A driver that has room for so many bytes of frames at once has ample.
const AMPLE: usize = 2 * MAX_FRAME;

struct Net {
    /// How the user knows the interface.
    name: String,
    mac: Mac,
    /// The address that the configuration wants, whatever was saved.
    wanted: Option<Mac>,
    /// The address or the state of the link is not the one that the driver has read.
    differs: bool,
    link: Box<dyn Link>,
    /// Largest packet in bytes that the driver is told to send.
    mtu: u16,
    /// Nothing is offered that depends on the link.
    portable: bool,
    /// The driver has read `mtu`.
    mtu_known: bool,
    /// The link is down for good: it failed, or leads nowhere.
    down: bool,
    /// MAC, status, number of queue pairs, MTU (`struct virtio_net_config`, 5.1.4).
    config: [u8; 12],
    /// The driver merges buffers: a frame may be spread over several chains.
    mergeable: bool,
    /// The driver has shown that it provides ample room. When there is none, it is about to give more, and waiting
    /// loses nothing. For another driver, it is better to lose the frames that do not fit than to wait forever.
    ample: bool,
    /// Receive chains that were taken ahead. They stay between calls, since most frames need one and the largest many.
    pool: Pool,
}

impl Net {
    fn new(name: String, mac: Mac, link: Box<dyn Link>) -> Self {
        let mut net = Net {
            name,
            mac,
            wanted: None,
            differs: false,
            mtu: link.mtu(),
            down: !link.is_up(),
            link,
            portable: false,
            mtu_known: false,
            config: [0; 12],
            mergeable: false,
            ample: false,
            pool: Pool::default(),
        };
        net.describe();
        net
    }

    /// Writes the configuration space.
    fn describe(&mut self) {
        let status = if self.down { 0 } else { VIRTIO_NET_S_LINK_UP as u16 };
        self.config[..6].copy_from_slice(&self.mac.0);
        self.config[6..8].copy_from_slice(&status.to_le_bytes());
        self.config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        self.config[10..].copy_from_slice(&self.mtu.to_le_bytes());
    }

    /// The link has failed: the driver is told, and frames go nowhere from now on.
    fn lost(&mut self, error: &io::Error, lent: &mut Lent) {
        error!("Network interface {} is down: {error}", self.name);
        self.down = true;
        self.describe();
        lent.config_changed();
    }

    fn transmit(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        for _ in 0..BATCH {
            let Some(chain) = lent.take(TRANSMIT)? else { return Ok(()) };
            // What is no frame is dropped, as a wire would.
            if !self.down && (MIN_FRAME..=MAX_FRAME).contains(&chain.readable.len()) {
                match self.link.send(&chain.readable) {
                    Ok(true) => {}
                    Ok(false) => {
                        lent.put_back(TRANSMIT);
                        return Ok(());
                    }
                    Err(error) => self.lost(&error, lent),
                }
            }
            lent.give(TRANSMIT, chain.head, 0)?;
        }
        lent.again(TRANSMIT);
        Ok(())
    }

    fn receive(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        let mut room = Buffers::new(lent.memory());
        for _ in 0..BATCH {
            if self.down {
                return Ok(());
            }
            let wanted = match self.link.room() {
                Ok(None) => return Ok(()),
                Ok(Some(wanted)) if self.mergeable => wanted,
                // One chain has to do.
                Ok(Some(_)) => 1,
                Err(error) => {
                    self.lost(&error, lent);
                    return Ok(());
                }
            };
            self.pool.gather(wanted, lent)?;
            if self.pool.chains.is_empty() || self.pool.len < wanted && self.ample {
                return Ok(());
            }
            self.pool.show(wanted, &mut room);
            match self.link.receive(&room) {
                Ok(Received::Frame(len)) => self.pool.give(len, lent)?,
                Ok(Received::Dropped) => {}
                Ok(Received::Nothing) => return Ok(()),
                Err(error) => self.lost(&error, lent),
            }
        }
        lent.again(RECEIVE);
        Ok(())
    }

    /// Looks how much room the driver provides.
    fn measure(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        if self.mergeable && !self.ample {
            self.pool.gather(AMPLE, lent)?;
            self.ample = self.pool.len >= AMPLE;
        }
        Ok(())
    }
}

/// Receive chains that were taken and not used yet.
#[derive(Default)]
struct Pool {
    chains: VecDeque<Chain>,
    /// Bytes in all chains.
    len: usize,
    /// Pieces of memory in all chains.
    pieces: usize,
}

impl Pool {
    /// Takes chains until there is room for `wanted` bytes, or as much as there is.
    fn gather(&mut self, wanted: usize, lent: &mut Lent) -> Result<(), Violation> {
        while self.len < wanted {
            let Some(chain) = lent.take(RECEIVE)? else { return Ok(()) };
            let pieces = chain.writable.iovecs().len();
            if chain.writable.len() < HEADER || pieces >= MAX_PIECES {
                let reason = "a receive buffer is smaller than a header or too scattered".into();
                return Err(Violation::Chain { queue: RECEIVE, reason });
            }
            if self.pieces + pieces >= MAX_PIECES {
                lent.put_back(RECEIVE);
                return Ok(());
            }
            self.len += chain.writable.len();
            self.pieces += pieces;
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// Makes `room` the first chains that together have `wanted` bytes, or all of them.
    fn show(&self, wanted: usize, room: &mut Buffers) {
        room.clear();
        for chain in &self.chains {
            room.extend(&chain.writable);
            if room.len() >= wanted {
                break;
            }
        }
    }

    /// Gives the first chains, which hold a frame of `len` bytes, to the driver.
    fn give(&mut self, len: usize, lent: &mut Lent) -> Result<(), Violation> {
        let (mut count, mut reach) = (0_u16, 0);
        for chain in &self.chains {
            count += 1;
            reach += chain.writable.len();
            if reach >= len {
                break;
            }
        }
        if let Some(first) = self.chains.front() {
            // The header may be scattered over the chain, but it is in the first one.
            first.writable.write_at(NUM_BUFFERS, &count.to_le_bytes());
        }
        let mut left = len;
        for chain in self.chains.drain(..usize::from(count)) {
            let room = chain.writable.len();
            self.len -= room;
            self.pieces -= chain.writable.iovecs().len();
            let written = left.min(room);
            left -= written;
            lent.give(RECEIVE, chain.head, written as u32)?;
        }
        Ok(())
    }

    fn put_back(&mut self, lent: &mut Lent) {
        for _ in std::mem::take(self).chains {
            lent.put_back(RECEIVE);
        }
    }
}

/// The features that stand for frames that the other side may leave unfinished.
fn features(offloads: Offloads, [checksum, tso4, tso6, ecn, ufo]: [u32; 5]) -> u64 {
    let bit = |wanted, feature| if wanted { 1_u64 << feature } else { 0 };
    bit(offloads.checksum, checksum)
        | bit(offloads.tso4, tso4)
        | bit(offloads.tso6, tso6)
        | bit(offloads.ecn, ecn)
        | bit(offloads.ufo, ufo)
}

/// What the device takes from the driver.
const HOST: [u32; 5] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
];

/// What the driver takes from the device.
const GUEST: [u32; 5] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
];

/// Names of [`HOST`], then of [`GUEST`].
const NAMES: [&str; 10] = [
    "VIRTIO_NET_F_CSUM",
    "VIRTIO_NET_F_HOST_TSO4",
    "VIRTIO_NET_F_HOST_TSO6",
    "VIRTIO_NET_F_HOST_ECN",
    "VIRTIO_NET_F_HOST_UFO",
    "VIRTIO_NET_F_GUEST_CSUM",
    "VIRTIO_NET_F_GUEST_TSO4",
    "VIRTIO_NET_F_GUEST_TSO6",
    "VIRTIO_NET_F_GUEST_ECN",
    "VIRTIO_NET_F_GUEST_UFO",
];

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET
    }

    fn label(&self) -> String {
        format!("network interface {}", self.name)
    }

    fn feature(&self, bit: u32) -> Option<&'static str> {
        let known = HOST.iter().chain(&GUEST).zip(NAMES).find(|(known, _)| **known == bit);
        known.map(|(_, name)| name).or((bit == VIRTIO_NET_F_MTU).then_some("VIRTIO_NET_F_MTU"))
    }

    fn differs(&self) -> bool {
        self.differs
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn features(&self) -> u64 {
        let always = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MRG_RXBUF];
        let always = always.iter().fold(0, |all, feature| all | 1 << feature);
        if self.portable {
            return always;
        }
        let offloads = self.link.offloads();
        always | 1 << VIRTIO_NET_F_MTU | features(offloads, HOST) | features(offloads, GUEST)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn events(&self) -> Vec<RawFd> {
        vec![self.link.event()]
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        let [checksum, tso4, tso6, ecn, ufo] = GUEST.map(|feature| features & 1 << feature != 0);
        self.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.mtu_known = features & 1 << VIRTIO_NET_F_MTU != 0;
        self.link.start(Offloads { checksum, tso4, tso6, ecn, ufo }.consistent())
    }

    fn kick(&mut self, index: usize, lent: &mut Lent) -> Result<(), Violation> {
        match index {
            RECEIVE => {
                self.measure(lent)?;
                self.receive(lent)
            }
            _ => self.transmit(lent),
        }
    }

    fn ready(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        if !self.down
            && let Err(error) = self.link.wake()
        {
            self.lost(&error, lent);
        }
        self.transmit(lent)?;
        self.receive(lent)
    }

    fn drain(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        self.pool.put_back(lent);
        Ok(())
    }

    fn reset(&mut self) {
        self.mergeable = false;
        self.mtu_known = false;
        self.ample = false;
        self.pool = Pool::default();
    }
}
