//! The header before every packet (`struct virtio_vsock_hdr`, virtio 1.2, 5.10.6).
//!
//! The `virtio-vsock` crate, which parses packets too, is not used: it refuses packets whose data is scattered, as
//! Linux sends them since 6.7, takes only descriptor chains that nobody has checked yet, and otherwise wants Rust
//! references to guest memory.

use crate::memory::Buffers;

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's address.
pub const HOST_CID: u64 = 2;

/// The only type of connection here: a stream of bytes.
pub const STREAM: u16 = 1;

/// What a packet is for (5.10.6, `enum virtio_vsock_op`).
pub mod op {
    /// Open a connection.
    pub const REQUEST: u16 = 1;
    /// The connection is open.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection (any more).
    pub const RST: u16 = 3;
    /// One side or both will not be used any more.
    pub const SHUTDOWN: u16 = 4;
    /// Bytes of the stream.
    pub const RW: u16 = 5;
    /// How much room the sender has.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks how much room there is.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: its sender will not receive any more.
pub const NO_RECEIVE: u32 = 1;

/// Flag of a shutdown: its sender will not send any more.
pub const NO_SEND: u32 = 2;

/// A connection: the port on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

/// A header, taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: u64,
    /// Address of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Type of the connection.
    pub kind: u16,
    /// What the packet is for.
    pub op: u16,
    /// More about that.
    pub flags: u32,
    /// Bytes that the sender can keep.
    pub buf_alloc: u32,
    /// Bytes that the sender has passed on since the connection began; wraps around.
    pub fwd_cnt: u32,
}

impl Header {
    /// Copies the header out of the start of a packet; `None` if the packet is too short.
    pub fn read(packet: &Buffers) -> Option<Self> {
        let mut bytes = [0; HEADER];
        (packet.read_at(0, &mut bytes) == HEADER).then(|| Header::decode(&bytes))
    }

    /// Reads the bytes of a header.
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        fn take<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        Header {
            src_cid: u64::from_le_bytes(take(bytes, 0)),
            dst_cid: u64::from_le_bytes(take(bytes, 8)),
            src_port: u32::from_le_bytes(take(bytes, 16)),
            dst_port: u32::from_le_bytes(take(bytes, 20)),
            len: u32::from_le_bytes(take(bytes, 24)),
            kind: u16::from_le_bytes(take(bytes, 28)),
            op: u16::from_le_bytes(take(bytes, 30)),
            flags: u32::from_le_bytes(take(bytes, 32)),
            buf_alloc: u32::from_le_bytes(take(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(take(bytes, 40)),
        }
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet.
    pub fn reset(&self) -> Self {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        }
    }

    /// The connection that a packet from the guest belongs to.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }
}
