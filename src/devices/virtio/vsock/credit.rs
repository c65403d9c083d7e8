//! How much each side may send before the other has passed it on (virtio 1.2, 5.10.6.3). All counts wrap around.

use super::packet::Header;

/// Bytes that are kept for a socket of the host that does not take them.
pub const WINDOW: u32 = 128 << 10;

/// What the guest has room for.
#[derive(Debug, Default)]
pub struct Credit {
    alloc: u32,
    forwarded: u32,
    sent: u32,
    asked: bool,
}

impl Credit {
    /// Reads what a packet of the guest says about it.
    pub fn learn(&mut self, header: &Header) {
        self.alloc = header.buf_alloc;
        self.forwarded = header.fwd_cnt;
        self.asked &= self.left() == 0;
    }

    /// Bytes that the guest has room for. What a guest says that contradicts itself means none.
    pub fn left(&self) -> u32 {
        self.alloc.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// So many bytes are on their way.
    pub fn spend(&mut self, bytes: usize) {
        self.sent = self.sent.wrapping_add(bytes as u32);
    }

    /// The guest is asked for more.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether it was asked since it last gave some.
    pub fn was_asked(&self) -> bool {
        self.asked
    }
}

/// What the guest may send.
#[derive(Debug, Default)]
pub struct Window {
    received: u32,
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    told: u32,
    tell: bool,
}

impl Window {
    /// Bytes that there is room for. The guest may know of less.
    pub fn left(&self) -> u32 {
        WINDOW - self.received.wrapping_sub(self.forwarded)
    }

    /// The guest has sent so many bytes, for which there is room.
    pub fn receive(&mut self, bytes: usize) {
        self.received = self.received.wrapping_add(bytes as u32);
    }

    /// So many bytes have gone to the host.
    pub fn forward(&mut self, bytes: usize) {
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
        // The guest must know before its credit ends, but not after every packet.
        self.tell |= self.forwarded.wrapping_sub(self.told) >= WINDOW / 2;
    }

    /// All has gone, or is lost.
    pub fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// The guest wants to know.
    pub fn ask(&mut self) {
        self.tell = true;
    }

    /// Whether the guest is to be told.
    pub fn is_to_tell(&self) -> bool {
        self.tell
    }

    /// Writes it into a packet for the guest.
    pub fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        self.tell = false;
        header.buf_alloc = WINDOW;
        header.fwd_cnt = self.forwarded;
    }
}
