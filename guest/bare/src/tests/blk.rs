//! A virtio block device (virtio 1.2, 5.2): every request type, at both ends of the disk, and requests
//! that must fail.
//!
//! `mode=write` and `mode=verify` do only one half, so that one boot can check what another wrote, and
//! `mode=discard` and `mode=zero` do neither; `rounds=` repeats, and `until=typed` goes on after that until a byte comes at
//! COM1, and tells the number of rounds.

use crate::memory::{Shared, pages};
use crate::virtio::{self, Device, Irq, Queue, readable, writable};
use crate::{Result, check, cmdline, print, serial};

const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD_REQUEST: u32 = 11;
const WRITE_ZEROES_REQUEST: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

const SECTOR: u64 = 512;
const MAX_SECTORS: u64 = 64;

pub struct Disk {
    queue: Queue,
    irq: Irq,
    header: Shared,
    data: Shared,
    pub capacity: u64,
    features: u64,
}

impl Disk {
    pub fn open(device: &mut Device) -> Result<Disk> {
        let features = device.begin(READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES)?;
        let queue = device.queue(0, 64)?;
        device.go()?;
        let capacity = device.config64(0);
        Ok(Disk {
            irq: device.route(),
            queue,
            header: pages(1),
            data: pages(MAX_SECTORS * SECTOR / 4096),
            capacity,
            features,
        })
    }

    /// One request: header, `size` bytes of data in the direction of `request`, status. Gives the status
    /// and the bytes written.
    fn request(&mut self, request: u32, sector: u64, size: u64) -> Result<(u8, u32)> {
        let status = self.header.at(16);
        self.header.write32(0, request);
        self.header.write32(4, 0);
        self.header.write64(8, sector);
        status.write8(0, 0xff);
        let data = match request {
            IN | GET_ID => writable(self.data, size),
            _ => readable(self.data, size),
        };
        let written = if size == 0 {
            self.queue.request(&mut self.irq, &[readable(self.header, 16), writable(status, 1)])?
        } else {
            self.queue.request(&mut self.irq, &[readable(self.header, 16), data, writable(status, 1)])?
        };
        Ok((status.read8(0), written))
    }

    /// Reads sectors, successfully.
    pub fn read(&mut self, sector: u64, count: u64) -> Result {
        let size = count * SECTOR;
        let (status, written) = self.request(IN, sector, size)?;
        check("the status of a read", status, STATUS_OK)?;
        check("bytes written by a read", written, size + 1)
    }

    fn write(&mut self, sector: u64, count: u64, seed: u64) -> Result {
        self.data.fill(count * SECTOR, seed);
        let (status, written) = self.request(OUT, sector, count * SECTOR)?;
        check("the status of a write", status, STATUS_OK)?;
        check("bytes written by a write", written, 1u32)
    }

    fn verify(&mut self, sector: u64, count: u64, seed: u64) -> Result {
        self.data.fill(count * SECTOR, !seed);
        self.read(sector, count)?;
        let difference = self.data.first_difference(count * SECTOR, seed);
        check(
            "what was read is not what was written, from this byte on",
            difference.unwrap_or(u64::MAX),
            u64::MAX,
        )
    }

    fn flush(&mut self) -> Result {
        if self.features & FLUSH == 0 {
            print!("blk: no flush\n");
            return Ok(());
        }
        let (status, _) = self.request(FLUSH_REQUEST, 0, 0)?;
        check("the status of a flush", status, STATUS_OK)
    }

    /// Discards or zeroes; zeroes must then be read, and after a discard anything may be.
    fn clear(&mut self, request: u32, sector: u64, count: u64) -> Result {
        self.data.write64(0, sector);
        self.data.write32(8, count as u32);
        self.data.write32(12, 0);
        let (status, _) = self.request(request, 0, 16)?;
        check("the status of a discard or of zeroing", status, STATUS_OK)?;
        self.data.fill(count * SECTOR, 1);
        self.read(sector, count)?;
        let zeroes = (0..count * SECTOR).step_by(8).all(|offset| self.data.read64(offset) == 0);
        check("zeroed sectors read as zeroes", zeroes || request == DISCARD_REQUEST, true)
    }

    fn identify(&mut self) -> Result {
        self.data.fill(24, 0);
        let (status, _) = self.request(GET_ID, 0, 20)?;
        check("the status of an identification", status, STATUS_OK)?;
        let mut id = [0u8; 20];
        for (offset, byte) in (0..).zip(&mut id) {
            *byte = self.data.read8(offset);
        }
        let length = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        print!("blk: id ", id[..length], "\n");
        Ok(())
    }
}

pub fn run() -> Result {
    let mut device = Device::find(virtio::BLOCK)?;
    let mut disk = Disk::open(&mut device)?;
    let read_only = disk.features & READ_ONLY != 0;
    print!("blk: ", disk.capacity, " sectors", if read_only { ", read-only" } else { "" }, "\n");

    let first = cmdline::number("first", 0);
    let count = cmdline::number("sectors", 8).clamp(1, MAX_SECTORS).min(disk.capacity);
    let last = disk.capacity - count;
    let seed = cmdline::number("seed", 1);
    let mode = cmdline::value("mode");
    let wants = |part: &[u8]| mode.is_none_or(|mode| mode == part);
    let rounds = cmdline::number("rounds", 1);
    let until_typed = cmdline::value("until").is_some_and(|until| until == b"typed");
    let mut round = 0;
    while round < rounds || until_typed && !serial::has_input() {
        let seed = seed + round;
        round += 1;
        if !read_only && wants(b"write") {
            disk.write(first, count, seed)?;
            disk.write(last, count, !seed)?;
            disk.flush()?;
        }
        if wants(b"verify") && (mode.is_some() || !read_only) {
            // If the two overlap, the last one has won.
            if last >= first + count {
                disk.verify(first, count, seed)?;
            }
            disk.verify(last, count, !seed)?;
        }
    }

    if until_typed {
        print!("blk: rounds ", round, "\n");
    }

    disk.identify()?;
    disk.read(first, 1)?;
    let (status, _) = disk.request(IN, disk.capacity, SECTOR)?;
    check("the status of a read behind the end", status, STATUS_IO_ERROR)?;
    let (status, _) = disk.request(IN, u64::MAX, SECTOR)?;
    check("the status of a read far behind the end", status, STATUS_IO_ERROR)?;
    let (status, _) = disk.request(0x7f, 0, SECTOR)?;
    check("the status of an unknown request", status, STATUS_UNSUPPORTED)?;
    if read_only {
        let (status, _) = disk.request(OUT, 0, SECTOR)?;
        check("the status of a write to a read-only disk", status, STATUS_IO_ERROR)?;
    }
    let requests = [
        ("discard", wants(b"discard"), DISCARD, DISCARD_REQUEST),
        ("write zeroes", wants(b"zero"), WRITE_ZEROES, WRITE_ZEROES_REQUEST),
    ];
    for (name, wanted, feature, request) in requests {
        if wanted && !read_only {
            if disk.features & feature != 0 {
                disk.clear(request, first, count)?;
            } else {
                print!("blk: no ", name, "\n");
            }
        }
    }
    print!("blk: ", disk.irq.count(), " interrupts\n");
    Ok(())
}
