//! Host side of a network device: where its frames go. Nothing here knows virtio.
//!
//! ```text
//!            trait Link
//!           ┌────┴─────┬───────────┐
//!          tap        user      unplugged: nowhere
//!           │          │
//!     /dev/net/tun   framed: frames on a stream socket of passt, a process that turns them into sockets of the host
//! ```

mod claim;
mod framed;
mod mac;
pub mod publish;
mod resolver;
pub mod tap;
#[cfg(test)]
pub(crate) mod testing;
pub mod unplugged;
pub mod user;
mod window;

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

pub use claim::Claim;
pub use framed::Framed;
pub use mac::{Mac, NotMac};
pub use publish::{NotPublish, Protocol, Publish};

use crate::memory::Buffers;

/// Bytes of the header before every frame, in both directions: `struct virtio_net_hdr_v1`
/// (virtio 1.2, 5.1.6), which Linux taps speak too. A link without offloads gives and takes zeroes.
pub const HEADER: usize = 12;

/// Largest frame with its header: 64 KiB of segmentation offload, Ethernet and virtio header.
pub const MAX_FRAME: usize = 65_562;

/// Smallest frame with its header: two addresses and a type.
pub const MIN_FRAME: usize = HEADER + ETHERNET;

/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;

/// What a reader of frames takes: frames that their sender left unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be left to the receiver.
    pub checksum: bool,
    /// TCP segments over IPv4 may be larger than the MTU.
    pub tso4: bool,
    /// TCP segments over IPv6 may be larger than the MTU.
    pub tso6: bool,
    /// Such segments may carry congestion marks.
    pub ecn: bool,
    /// UDP datagrams may be larger than the MTU.
    pub ufo: bool,
}

impl Offloads {
    /// Every one of them.
    pub const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };

    /// Only what makes sense together: a frame that is to be cut needs its checksums made.
    #[must_use]
    pub fn consistent(self) -> Self {
        if self.checksum { self } else { Offloads::default() }
    }

    /// Whether frames can be larger than the MTU.
    pub fn large(self) -> bool {
        self.tso4 || self.tso6 || self.ufo
    }
}

/// What came of an attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of so many bytes, its header included.
    Frame(usize),
    /// A frame that did not fit into the buffers, whose contents are now undefined. It is lost.
    Dropped,
    /// No frame waits.
    Nothing,
}

/// A network link. One thread owns it: the event loop of its device.
///
/// It never blocks. An error of [`wake`](Self::wake), [`room`](Self::room), [`receive`](Self::receive) or
/// [`send`](Self::send) means that the link is down for good; single frames that the other side refuses are dropped.
pub trait Link: Send {
    /// Whether it leads anywhere.
    fn is_up(&self) -> bool {
        true
    }
    /// What the other side of the link takes from the guest; the device offers it to the guest's driver.
    fn offloads(&self) -> Offloads;
    /// Largest packet in bytes, without Ethernet header, that the guest should send.
    fn mtu(&self) -> u16;
    /// The driver has chosen: frames towards the guest may use only these. Called when the driver is
    /// ready, before the first frame, and again after every reset. What is costly to begin (a helper
    /// process) begins here.
    fn start(&mut self, offloads: Offloads) -> io::Result<()>;
    /// A descriptor, the same for the life of the link, watched for edges: readable when a frame came,
    /// writable when a full link takes frames again.
    fn event(&self) -> RawFd;
    /// `event` fired: whatever is stuck inside the link moves on. Called before the frames are looked at.
    fn wake(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Bytes of buffers that the next frame may need, its header included, or `None` when no frame waits.
    /// A link that cannot know says how much the largest frame needs.
    fn room(&mut self) -> io::Result<Option<usize>>;
    /// Receives one frame, header first, into `buffers`.
    fn receive(&mut self, buffers: &Buffers) -> io::Result<Received>;
    /// Sends one frame, header first. False when the link is full: the frame was not taken and is
    /// to be sent again when `event` fires.
    fn send(&mut self, frame: &Buffers) -> io::Result<bool>;
}

/// Why a link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interface can have this name.
    #[error("`{name}` cannot name a tap: a name has 1 to 15 bytes, no blanks and none of `/`, `:`, `%`")]
    TapName {
        /// The name.
        name: String,
    },
    /// The tun driver is missing or closed to this user.
    #[error("Cannot open /dev/net/tun (is the kernel module `tun` loaded?)")]
    OpenTun(#[source] io::Error),
    /// There is no such tap, and making one takes privileges.
    #[error(
        "There is no tap {name}, and only an administrator can make one: \
         `ip tuntap add {name} mode tap user $USER && ip link set {name} up`"
    )]
    NoTap {
        /// Name of the tap.
        name: String,
    },
    /// The tap is another user's.
    #[error(
        "Tap {name} belongs to another user; a tap of your own: `ip tuntap add NAME mode tap user $USER`"
    )]
    ForeignTap {
        /// Name of the tap.
        name: String,
    },
    /// The tap is taken.
    #[error("Tap {name} is in use by another process")]
    BusyTap {
        /// Name of the tap.
        name: String,
    },
    /// There is an interface of that name, but not one with frames and one queue.
    #[error("{name} is not a tap with one queue, as `ip tuntap add {name} mode tap` makes it")]
    NotTap {
        /// Name of the interface.
        name: String,
    },
    /// Something else went wrong with the tap.
    #[error("Cannot set up tap {name}")]
    SetUpTap {
        /// Name of the tap.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The helper for user networking is missing.
    #[error("passt is not installed: `apt install passt`, or use `--net tap=NAME` or `--net none`")]
    NoPasst,
    /// A port that is to be published is taken or forbidden.
    #[error("Cannot publish {protocol} port {address}")]
    Publish {
        /// The port of the host.
        address: SocketAddr,
        /// Whose port it is.
        protocol: Protocol,
        /// The host's answer.
        source: io::Error,
    },
    /// The socket to the helper could not be made.
    #[error("Cannot make the socket to passt")]
    Socket(#[source] io::Error),
}
