//! What a descriptor chain asks of a block device, with every bound checked (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::devices::virtio::{Lent, Violation};
use crate::disk::{Geometry, Request, SECTOR};
use crate::memory::Buffers;

/// Bytes before the data.
pub const HEADER_LEN: usize = 16;
/// Bytes of the device's identity.
pub const ID_LEN: usize = 20;
/// The most ranges in one discard or write-zeroes request.
pub const MAX_SEGMENTS: u32 = 32;
/// The longest range to discard: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The longest range to zero: 64 MiB, in case that zeroes have to be written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

const SEGMENT_LEN: usize = 16;

/// The start of a request, copied out of guest memory.
#[derive(Clone, Copy)]
pub struct Header {
    kind: u32,
    sector: u64,
}

/// What a request is checked against.
pub struct Target<'a> {
    /// The disk.
    pub geometry: &'a Geometry,
    /// The device's identity.
    pub serial: &'a [u8; ID_LEN],
    /// Flushes are not passed on.
    pub no_flush: bool,
}

impl Header {
    /// Copies the header, or `None` if the readable part is too short.
    pub fn read(readable: &Buffers) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        if readable.read_at(0, &mut bytes) < HEADER_LEN {
            return None;
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        Some(Header { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector) })
    }

    /// Whether the request changes what is on the disk.
    pub fn changes_disk(self) -> bool {
        matches!(self.kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES)
    }

    /// Bytes that are written to the driver on success, with the status byte.
    pub fn written(self, writable: &Buffers) -> u32 {
        match self.kind {
            VIRTIO_BLK_T_IN => writable.len() as u32 + 1,
            VIRTIO_BLK_T_GET_ID => writable.len().min(ID_LEN) as u32 + 1,
            _ => 1,
        }
    }

    /// What the disk has to do; nothing if the answer is ready already.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn requests(self, payload: Buffers, writable: Buffers, target: &Target) -> Result<Vec<Request>, u32> {
        if self.changes_disk() && target.geometry.read_only {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        match self.kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(writable.len(), target.geometry)?;
                Ok(Vec::from_iter((!writable.is_empty()).then_some(Request::Read { offset, buffers: writable })))
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.range(payload.len(), target.geometry)?;
                Ok(Vec::from_iter((!payload.is_empty()).then_some(Request::Write { offset, buffers: payload })))
            }
            VIRTIO_BLK_T_FLUSH if target.no_flush => Ok(Vec::new()),
            VIRTIO_BLK_T_FLUSH => Ok(vec![Request::Flush]),
            VIRTIO_BLK_T_GET_ID => {
                writable.write_at(0, target.serial);
                Ok(Vec::new())
            }
            VIRTIO_BLK_T_DISCARD => segments(&payload, MAX_DISCARD_SECTORS, 0, target.geometry, |segment| {
                Request::Discard { offset: segment.offset, len: segment.len }
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                segments(&payload, MAX_WRITE_ZEROES_SECTORS, known, target.geometry, |segment| {
                    let unmap = segment.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                    Request::WriteZeroes { offset: segment.offset, len: segment.len, unmap }
                })
            }
            _ => Err(VIRTIO_BLK_S_UNSUPP),
        }
    }

    /// The byte offset of a read or write of `len` bytes.
    fn range(self, len: usize, geometry: &Geometry) -> Result<u64, u32> {
        if !(len as u64).is_multiple_of(SECTOR) {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        inside(self.sector, len as u64, geometry)
    }
}

/// The byte offset of `sector` if `len` bytes from there on are on the disk.
fn inside(sector: u64, len: u64, geometry: &Geometry) -> Result<u64, u32> {
    let offset = sector.checked_mul(SECTOR).ok_or(VIRTIO_BLK_S_IOERR)?;
    match offset.checked_add(len) {
        Some(end) if end <= geometry.size => Ok(offset),
        _ => Err(VIRTIO_BLK_S_IOERR),
    }
}

struct Segment {
    offset: u64,
    len: u64,
    flags: u32,
}

/// The ranges of a discard or write-zeroes request.
fn segments(
    payload: &Buffers,
    max_sectors: u32,
    known_flags: u32,
    geometry: &Geometry,
    request: impl Fn(Segment) -> Request,
) -> Result<Vec<Request>, u32> {
    let count = payload.len() / SEGMENT_LEN;
    if !payload.len().is_multiple_of(SEGMENT_LEN) || count == 0 || count > MAX_SEGMENTS as usize {
        return Err(VIRTIO_BLK_S_IOERR);
    }
    let mut requests = Vec::with_capacity(count);
    for index in 0..count {
        let mut bytes = [0; SEGMENT_LEN];
        payload.read_at(index * SEGMENT_LEN, &mut bytes);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, sectors, flags) = (u64::from(word(4)) << 32 | u64::from(word(0)), word(8), word(12));
        if flags & !known_flags != 0 {
            return Err(VIRTIO_BLK_S_UNSUPP);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = inside(sector, len, geometry)?;
        if sectors > max_sectors {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        if len > 0 {
            requests.push(request(Segment { offset, len, flags }));
        }
    }
    Ok(requests)
}

/// Writes the status byte and gives the chain back.
pub fn answer(lent: &mut Lent, head: u16, status: &Buffers, code: u32, written: u32) -> Result<(), Violation> {
    status.write_at(0, &[code as u8]);
    lent.give(0, head, written)
}
