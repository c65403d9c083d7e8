//! Host side of a network device: where its frames go. Nothing here knows virtio.

use std::io;
use std::os::fd::RawFd;

use crate::memory::Buffers;

/// Bytes of the header before every frame, in both directions: `struct virtio_net_hdr_v1`
/// (virtio 1.2, 5.1.6), which Linux taps speak too. A link without offloads gives and takes zeroes.
pub const HEADER: usize = 12;

/// Largest frame with its header: 64 KiB of segmentation offload, Ethernet and virtio header.
pub const MAX_FRAME: usize = 65_562;

/// What the far side of a link can take over from the guest's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be left to the receiver.
    pub checksum: bool,
    /// TCP segments over IPv4 and IPv6 may be larger than the MTU, with or without ECN.
    pub tso: bool,
    /// UDP datagrams may be larger than the MTU.
    pub ufo: bool,
}

/// A network link. One thread owns it: the event loop of its device.
pub trait Link: Send {
    /// What the link can do; the device offers it to the guest's driver.
    fn offloads(&self) -> Offloads;
    /// The driver has chosen: frames towards the guest may use only these. Called when the driver is
    /// ready, before the first frame, and again after every reset. What is costly to begin (a helper
    /// process) begins here.
    fn start(&mut self, offloads: Offloads) -> io::Result<()>;
    /// A descriptor, the same for the life of the link, watched for edges: readable when a frame came,
    /// writable when a full link takes frames again.
    fn event(&self) -> RawFd;
    /// Receives one frame, header first, into `buffers`. Returns its length with the header, or `None`
    /// when nothing waits. A frame longer than `buffers` is dropped, with a count in the log.
    fn receive(&mut self, buffers: &Buffers) -> io::Result<Option<usize>>;
    /// Sends one frame, header first. False when the link is full: the frame was not taken and is
    /// to be sent again when `event` fires.
    fn send(&mut self, frame: &Buffers) -> io::Result<bool>;
}
