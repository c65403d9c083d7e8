//! Any disk against a `Vec<u8>`: random requests, several in flight, must do to both the same.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{Disk, Done, Request, SECTOR};
use crate::memory::{Buffers, Memory, Pages, allocate};
use crate::testing::{PATIENCE, Random};

const MEMORY: u64 = 1 << 20;

/// What a disk should hold. Sectors that were discarded are not known.
pub struct Model {
    bytes: Vec<u8>,
    known: Vec<bool>,
    memory: Arc<Memory>,
    random: Random,
}

/// Bytes, and which sectors of them are known.
struct Expected {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Expected {
    fn compare(&self, start: usize, got: &[u8]) {
        let sectors = got.chunks(SECTOR as usize).zip(self.bytes.chunks(SECTOR as usize)).zip(&self.known);
        for (i, ((got, expected), &known)) in sectors.enumerate() {
            assert!(
                !known || got == expected,
                "at {:#x}: {got:x?} for {expected:x?}",
                start + i * SECTOR as usize
            );
        }
    }
}

/// A request under way, and where its bytes are.
struct Pending {
    range: Range<usize>,
    expected: Option<Expected>,
    buffers: Buffers,
}

impl Model {
    /// A disk of these bytes.
    pub fn new(bytes: &[u8], seed: u64) -> Self {
        let memory = Arc::new(allocate(&[(GuestAddress(0), MEMORY)], Pages::Transparent).unwrap());
        let known = vec![true; bytes.len() / SECTOR as usize];
        Model { bytes: bytes.to_vec(), known, memory, random: Random(seed) }
    }

    /// Compares with all bytes of a disk.
    pub fn compare_bytes(&self, got: &[u8]) {
        assert_eq!(got.len(), self.bytes.len());
        self.expected(0..got.len()).compare(0, got);
    }

    fn expected(&self, range: Range<usize>) -> Expected {
        let sectors = range.start / SECTOR as usize..range.end / SECTOR as usize;
        Expected { bytes: self.bytes[range].to_vec(), known: self.known[sectors].to_vec() }
    }

    /// Plays `batches` of random requests.
    pub fn play(&mut self, disk: &mut dyn Disk, batches: usize) {
        assert_eq!(disk.geometry().size, self.bytes.len() as u64);
        for _ in 0..batches {
            let mut pending: Vec<Option<Pending>> = Vec::new();
            let mut next_byte = 0;
            for _ in 0..1 + self.random.below(8) {
                let range = self.range();
                let taken = |other: &Option<Pending>| {
                    other
                        .as_ref()
                        .is_some_and(|other| other.range.start < range.end && range.start < other.range.end)
                };
                if pending.iter().any(taken) || next_byte + range.len() as u64 > MEMORY {
                    continue;
                }
                let buffers = self.buffers(&mut next_byte, range.len());
                let (request, expected) = self.request(&range, &buffers, disk.geometry().read_only);
                disk.submit(pending.len() as u64, request);
                pending.push(Some(Pending { range, expected, buffers }));
            }
            for done in wait(disk, pending.len()) {
                done.result.unwrap();
                let Pending { range, expected, buffers } =
                    pending[done.tag as usize].take().expect("finished twice");
                let Some(expected) = expected else { continue };
                let mut got = vec![0; range.len()];
                buffers.read_at(0, &mut got);
                expected.compare(range.start, &got);
            }
        }
    }

    /// Some sectors, often on the borders of blocks and clusters.
    fn range(&mut self) -> Range<usize> {
        let sectors = self.bytes.len() as u64 / SECTOR;
        let unit = self.random.pick(&[1, 8, 8, 128]).min(sectors);
        let start = self.random.below(sectors / unit) * unit;
        let most = self.random.pick(&[1, 8, 8, 24, 300]);
        let len = ((1 + self.random.below(most)) * self.random.pick(&[1, 8])).min(sectors - start).min(600);
        (start * SECTOR) as usize..((start + len) * SECTOR) as usize
    }

    /// Memory for `len` bytes in pieces of any size.
    fn buffers(&mut self, next_byte: &mut u64, len: usize) -> Buffers {
        let mut buffers = Buffers::new(&self.memory);
        while buffers.len() < len {
            let most = if self.random.once_in(3) { 700 } else { 100_000 };
            let piece = (1 + self.random.below(most)).min((len - buffers.len()) as u64);
            buffers.push(GuestAddress(*next_byte), piece as usize).unwrap();
            *next_byte += piece;
        }
        buffers
    }

    /// A random request; the model is changed as the disk should be.
    fn request(
        &mut self,
        range: &Range<usize>,
        buffers: &Buffers,
        read_only: bool,
    ) -> (Request, Option<Expected>) {
        let (offset, len) = (range.start as u64, range.len() as u64);
        let buffers = buffers.part(0, range.len());
        let sectors = range.start / SECTOR as usize..range.end / SECTOR as usize;
        match self.random.below(if read_only { 5 } else { 12 }) {
            0..4 => (Request::Read { offset, buffers }, Some(self.expected(range.clone()))),
            4 => (Request::Flush, None),
            5 => {
                self.known[sectors].fill(false);
                (Request::Discard { offset, len }, None)
            }
            6 => {
                self.bytes[range.clone()].fill(0);
                self.known[sectors].fill(true);
                (Request::WriteZeroes { offset, len, unmap: self.random.once_in(2) }, None)
            }
            _ => {
                let fill = self.random.next() as u8;
                let bytes: Vec<u8> = (0..len).map(|i| (i / 64) as u8 ^ fill).collect();
                buffers.write_at(0, &bytes);
                self.bytes[range.clone()].copy_from_slice(&bytes);
                self.known[sectors].fill(true);
                (Request::Write { offset, buffers }, None)
            }
        }
    }

    /// Reads the whole disk and compares.
    pub fn compare(&self, disk: &mut dyn Disk) {
        self.compare_bytes(&read(disk, &self.memory, 0, self.bytes.len()));
    }
}

/// Waits for `count` requests.
pub fn wait(disk: &mut dyn Disk, count: usize) -> Vec<Done> {
    let mut done = Vec::new();
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        disk.finished(&mut done);
        if done.len() >= count {
            assert_eq!(done.len(), count, "finished more than was asked");
            return done;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    panic!("{} of {count} requests never finished", count - done.len());
}

/// One request, waited for.
pub fn ask(disk: &mut dyn Disk, request: Request) -> std::io::Result<()> {
    disk.submit(77, request);
    let done = wait(disk, 1).pop().unwrap();
    assert_eq!(done.tag, 77);
    done.result
}

/// Reads with requests of up to 1 MiB.
pub fn read(disk: &mut dyn Disk, memory: &Arc<Memory>, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, chunk) in bytes.chunks_mut(MEMORY as usize).enumerate() {
        let mut buffers = Buffers::new(memory);
        buffers.push(GuestAddress(0), chunk.len()).unwrap();
        ask(disk, Request::Read { offset: offset + i as u64 * MEMORY, buffers }).unwrap();
        memory.read_slice(chunk, GuestAddress(0)).unwrap();
    }
    bytes
}
