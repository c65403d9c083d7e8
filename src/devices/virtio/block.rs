//! Block device (virtio 1.2, section 5.2): gives the guest a disk, several requests at a time.
//!
//! ```text
//!  queue ─take─► request.rs ─requests─► disk ─┬─ done ──► status byte, used ring
//!                 (checks)        ▲           ├─ done, write-through ──► flush, then as above
//!                                 │           └─ host has no space left ──► stalled
//!                                 └──────────── retry, when the machine resumes ◄──┘
//! ```

mod config;
mod request;
mod state;
#[cfg(test)]
mod tests;
mod watch;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};

use std::io;
use std::os::fd::RawFd;

use log::warn;

use super::{Chain, Error, Lent, VirtioDevice, Violation};
use crate::disk::{self, Disk, Done, Request};
use crate::memory::Buffers;
use crate::notice::{Notice, Notifier};
use crate::sys::slab::Slab;

use request::answer;
use watch::Watch;

pub use config::{Cache, Config, Source, scratch};
pub use request::ID_LEN as SERIAL_LEN;

const QUEUE_SIZE: u16 = 256;
/// Requests that are handed to the disk together.
const BATCH: usize = 16;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

/// Offset of `writeback` in the configuration space.
const WRITEBACK: usize = 32;

/// What partition tools of old are told, as by every disk of the last decades (ATA-8 ACS, "CHS").
const HEADS: u8 = 16;
const SECTORS_PER_TRACK: u8 = 63;
const MAX_CYLINDERS: u64 = 16383;

fn cylinders(size: u64) -> u16 {
    let track = disk::SECTOR * u64::from(SECTORS_PER_TRACK);
    (size / (track * u64::from(HEADS))).clamp(1, MAX_CYLINDERS) as u16
}

/// A block device over any disk.
pub struct Block {
    disk: Box<dyn Disk>,
    watch: Watch,
    name: String,
    source: Source,
    serial: [u8; request::ID_LEN],
    cache: Cache,
    notifier: Notifier,
    space: [u8; 60],
    features: u64,
    /// What the driver wrote to `writeback` since the last reset.
    wanted_writeback: Option<bool>,
    pending: Slab<Pending>,
    /// Requests that the disk has and has not finished.
    under_way: usize,
    /// Requests that wait for space on the host.
    stalled: Vec<(u64, Request)>,
    /// Chains that were waiting so when the machine was saved: they begin anew.
    restored: Vec<u16>,
    done: Vec<Done>,
    errors: u64,
}

/// A chain whose requests are on their way. Its index in `pending` is the tag of its requests.
struct Pending {
    head: u16,
    status: Buffers,
    /// Bytes that the driver finds in its buffers if all goes well, with the status byte.
    written: u32,
    /// Requests not finished yet.
    left: usize,
    /// It changes the disk, so a write-through cache flushes before it is done.
    to_sync: bool,
    failed: bool,
}

impl Block {
    /// The device that shows `disk` to the guest. `serial` is cut at 20 bytes.
    ///
    /// # Errors
    /// The host's, if there is nothing left to watch the disk with.
    pub fn new(
        disk: Box<dyn Disk>,
        name: String,
        serial: &str,
        cache: Cache,
        notifier: Notifier,
    ) -> io::Result<Self> {
        let mut id = [0; request::ID_LEN];
        let len = serial.len().min(id.len());
        id[..len].copy_from_slice(&serial.as_bytes()[..len]);
        let mut block = Block {
            watch: Watch::new(&disk.events())?,
            disk,
            name,
            source: Source::default(),
            serial: id,
            cache,
            notifier,
            space: [0; 60],
            features: 0,
            wanted_writeback: None,
            pending: Slab::default(),
            under_way: 0,
            stalled: Vec::new(),
            restored: Vec::new(),
            done: Vec::new(),
            errors: 0,
        };
        block.fill_space();
        Ok(block)
    }

    /// Lays the configuration space out (5.2.4).
    fn fill_space(&mut self) {
        let geometry = self.disk.geometry();
        let blocks_per_physical = geometry.physical_block / disk::SECTOR as u32;
        let mut put = |offset: usize, bytes: &[u8]| {
            self.space[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &(geometry.size / disk::SECTOR).to_le_bytes());
        // The header and the status take a descriptor each.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(16, &cylinders(geometry.size).to_le_bytes());
        put(18, &[HEADS, SECTORS_PER_TRACK]);
        put(20, &(disk::SECTOR as u32).to_le_bytes());
        put(24, &[blocks_per_physical.trailing_zeros() as u8]);
        put(26, &(blocks_per_physical as u16).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        put(36, &request::MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &request::MAX_SEGMENTS.to_le_bytes());
        put(44, &blocks_per_physical.to_le_bytes());
        put(48, &request::MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &request::MAX_SEGMENTS.to_le_bytes());
        put(56, &[u8::from(geometry.discard)]);
        self.set_writeback();
    }

    /// The cache mode that follows from the configuration, the features and the driver's wish.
    fn set_writeback(&mut self) {
        let without_flush = self.features & (FLUSH | CONFIG_WCE) == CONFIG_WCE;
        let writeback = self.wanted_writeback.unwrap_or(!without_flush && self.cache != Cache::Writethrough);
        self.space[WRITEBACK] = u8::from(writeback);
    }

    /// Whether a write must be durable before it is complete (5.2.6.2).
    fn write_through(&self) -> bool {
        let no_flush_will_come = self.features & (FLUSH | CONFIG_WCE) == 0;
        self.cache != Cache::Unsafe && (no_flush_will_come || self.space[WRITEBACK] == 0)
    }

    /// Takes chains while there is room for them, and gives back what is done.
    fn pump(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        for head in std::mem::take(&mut self.restored) {
            if let Some(chain) = lent.take_again(0, head)? {
                self.begin(chain, lent)?;
            }
        }
        // What is done is told soon when the next request may take long.
        let batch = if self.disk.events().is_empty() { 1 } else { BATCH };
        loop {
            let (mut taken, mut empty) = (0, false);
            while taken < batch && !empty && self.pending.len() < usize::from(QUEUE_SIZE) {
                match lent.take(0)? {
                    Some(chain) => self.begin(chain, lent)?,
                    None => empty = true,
                }
                taken += 1;
            }
            self.collect(lent)?;
            lent.notify();
            if empty || self.pending.len() >= usize::from(QUEUE_SIZE) {
                return Ok(());
            }
        }
    }

    /// Starts what a chain asks for.
    fn begin(&mut self, chain: Chain, lent: &mut Lent) -> Result<(), Violation> {
        let Chain { head, mut readable, mut writable } = chain;
        let Some(header) = request::Header::read(&readable).filter(|_| !writable.is_empty()) else {
            return Err(Violation::Chain { queue: 0, reason: "it has no room for a header and a status".into() });
        };
        let payload = readable.split_off(request::HEADER_LEN);
        let status = writable.split_off(writable.len() - 1);
        let target = request::Target {
            geometry: self.disk.geometry(),
            serial: &self.serial,
            no_flush: self.cache == Cache::Unsafe,
        };
        let (written, to_sync) = (header.written(&writable), header.changes_disk());
        match header.requests(payload, writable, &target) {
            Ok(requests) if !requests.is_empty() => {
                let pending =
                    Pending { head, status, written, left: requests.len(), to_sync, failed: false };
                let tag = self.pending.insert(pending) as u64;
                for request in requests {
                    self.submit(tag, request);
                }
                Ok(())
            }
            Ok(_) => answer(lent, head, &status, VIRTIO_BLK_S_OK, written),
            Err(code) => answer(lent, head, &status, code, 1),
        }
    }

    fn submit(&mut self, tag: u64, request: Request) {
        self.under_way += 1;
        self.disk.submit(tag, request);
    }

    /// Gives the driver what the disk has finished.
    fn collect(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        loop {
            let mut done = std::mem::take(&mut self.done);
            self.disk.finished(&mut done);
            let left = self.under_way.saturating_sub(done.len());
            let result = self.settle(&mut done, lent);
            self.done = done;
            result?;
            if self.under_way == left {
                return Ok(());
            }
            // A write-through flush was started: hand it to the disk as well.
        }
    }

    fn settle(&mut self, done: &mut Vec<Done>, lent: &mut Lent) -> Result<(), Violation> {
        self.under_way = self.under_way.saturating_sub(done.len());
        for Done { tag, request, result } in done.drain(..) {
            let mut failed = false;
            if let Err(error) = result {
                if disk::is_full(&error) {
                    self.stall(tag, request, &error);
                    continue;
                }
                self.log(&error);
                failed = true;
            }
            let through = self.write_through();
            let Some(pending) = self.pending.get_mut(tag as usize) else { continue };
            pending.failed |= failed;
            pending.left -= 1;
            if pending.left > 0 {
                continue;
            }
            if pending.to_sync && through && !pending.failed {
                pending.to_sync = false;
                pending.left = 1;
                self.submit(tag, Request::Flush);
                continue;
            }
            if let Some(pending) = self.pending.remove(tag as usize) {
                let (code, written) =
                    if pending.failed { (VIRTIO_BLK_S_IOERR, 1) } else { (VIRTIO_BLK_S_OK, pending.written) };
                answer(lent, pending.head, &pending.status, code, written)?;
            }
        }
        Ok(())
    }

    fn stall(&mut self, tag: u64, request: Request, error: &io::Error) {
        if self.stalled.is_empty() {
            warn!("disk {}: {error}", self.name);
            let reason = format!("disk {}: {}", self.name, disk::remedy(error));
            self.notifier.notify(Notice::Stalled { reason });
        }
        self.stalled.push((tag, request));
    }

    fn error(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error { device: format!("disk {}", self.name), source }
    }

    /// A broken disk fails every request: the log gets less and less of them.
    fn log(&mut self, error: &io::Error) {
        self.errors += 1;
        if self.errors.is_power_of_two() {
            warn!("disk {}: I/O error number {}: {error}", self.name, self.errors);
        }
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK
    }

    fn label(&self) -> String {
        format!("disk {}", self.name)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let layout = 1 << VIRTIO_BLK_F_GEOMETRY | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY;
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | layout;
        let more = if self.disk.geometry().read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        always | more | FLUSH | CONFIG_WCE
    }

    fn config(&self) -> &[u8] {
        &self.space
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (WRITEBACK, [value]) = (offset, data) {
            self.wanted_writeback = Some(*value != 0);
            self.set_writeback();
        }
    }

    fn events(&self) -> Vec<RawFd> {
        self.watch.events()
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        self.features = features;
        self.set_writeback();
        Ok(())
    }

    fn kick(&mut self, _index: usize, lent: &mut Lent) -> Result<(), Violation> {
        self.pump(lent)
    }

    fn ready(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        self.collect(lent)?;
        self.pump(lent)
    }

    fn retry(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        for (tag, request) in std::mem::take(&mut self.stalled) {
            self.submit(tag, request);
        }
        self.collect(lent)
    }

    fn drain(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        while self.under_way > 0 {
            let mut done = Vec::new();
            self.disk.drain(&mut done);
            self.settle(&mut done, lent)?;
        }
        Ok(())
    }

    fn drive(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn freeze(&mut self) -> Result<Option<(String, disk::Contents)>, Error> {
        let contents = self.disk.freeze().map_err(|source| self.error(source.into()))?;
        self.watch.add(&self.disk.events()).map_err(|source| self.error(source.into()))?;
        Ok(contents.map(|contents| (self.name.clone(), contents)))
    }

    fn stand_on(&mut self, base: disk::Base, above: usize) -> bool {
        self.disk.stand_on(base, above)
    }

    fn reset(&mut self) {
        self.disk.drain(&mut self.done);
        self.done.clear();
        self.under_way = 0;
        self.stalled.clear();
        self.restored.clear();
        self.pending.clear();
        self.features = 0;
        self.wanted_writeback = None;
        self.set_writeback();
    }
}
