//! From a frozen machine to an image: which pages count, and writing them while the machine runs on.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::index::{CHUNK_PAGES, Index, Kind};
use super::{Chain, Error, Origin, PAGES_FILE, file};
use crate::memory::Memory;
use crate::sys::frozen::{Frozen, PAGE};

/// Called with the bytes of RAM that are done and all bytes of RAM.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The index, which is to be put beside the pages.
    pub index: Vec<u8>,
    /// Bytes of RAM.
    pub ram: u64,
    /// Bytes of pages with data in the image.
    pub data: u64,
    /// Bytes of pages that the image says are zero.
    pub zero: u64,
}

/// Writes the pages of a frozen machine into `directory` and makes them durable.
///
/// `memory` is the machine's, of which `frozen` is a copy at the same addresses; `origin` says which of it is mapped from
/// files. Without a base the image is whole: it holds every page that is not zero. With one it holds exactly the pages
/// that differ from what the base describes.
pub fn write(
    frozen: &Frozen,
    memory: &Memory,
    origin: &Origin,
    base: Option<&Chain>,
    directory: &Path,
    progress: Progress,
) -> Result<Written, Error> {
    let ram: u64 = memory.iter().map(|region| region.len()).sum();
    if let Some(base) = base {
        base.check_size(ram)?;
    }
    frozen.end_before_others();
    let mut writer = Writer::create(directory, ram, base)?;
    let mut candidates = Candidates::new(own(frozen, memory)?, origin, base);
    let mut number = 0;
    for region in memory.iter() {
        let mut done = 0;
        while done < region.len() {
            let start = region.as_ptr() as usize + done as usize;
            let first = number;
            // A chunk never crosses the border of a region: regions are multiples of 2 MiB or the last one.
            let count = CHUNK_PAGES.min((region.len() - done) / PAGE as u64);
            let look: Vec<bool> = (first..first + count).map(|page| candidates.look(page)).collect();
            writer.chunk(number, &look, &|page, to| {
                frozen.read(start + (page - first) as usize * PAGE, to).map_err(Error::Memory)
            })?;
            (number, done) = (number + count, done + count * PAGE as u64);
            progress(number * PAGE as u64, ram);
        }
    }
    frozen.check().map_err(Error::Memory)?;
    writer.finish()
}

/// Writes the pages that `chain` describes into `directory` and makes them durable: all, or those that differ from `base`.
pub fn fold(
    chain: &Chain,
    base: Option<&Chain>,
    directory: &Path,
    progress: Progress,
) -> Result<Written, Error> {
    let ram = chain.ram();
    if let Some(base) = base {
        base.check_size(ram)?;
    }
    let mut writer = Writer::create(directory, ram, base)?;
    let mut here = Cursor::new(chain.present());
    let mut there = Cursor::new(base.map(Chain::present).unwrap_or_default());
    let pages = ram / PAGE as u64;
    for first in (0..pages).step_by(CHUNK_PAGES as usize) {
        let chunk = first..pages.min(first + CHUNK_PAGES);
        let look: Vec<bool> =
            chunk.map(|page| [here.contains(page), there.contains(page)].contains(&true)).collect();
        writer.chunk(first, &look, &|page, to| {
            let (to, _) = to.as_chunks_mut::<PAGE>();
            to.iter_mut().zip(page..).try_for_each(|(to, page)| chain.read_page(page, to))
        })?;
        progress((first + look.len() as u64) * PAGE as u64, ram);
    }
    writer.finish()
}

/// The pages that are the frozen process's own, as runs of (first, pages).
fn own(frozen: &Frozen, memory: &Memory) -> Result<Vec<(u64, u64)>, Error> {
    let (mut first, mut runs) = (0, Vec::new());
    for region in memory.iter() {
        let start = region.as_ptr() as usize;
        let own = frozen.own(start..start + region.len() as usize).map_err(Error::Memory)?;
        let page = |address: usize| ((address - start) / PAGE) as u64;
        runs.extend(own.iter().map(|own| (first + page(own.start), page(own.end) - page(own.start))));
        first += region.len() / PAGE as u64;
    }
    Ok(runs)
}

/// Decides for each page, in order, whether it may have to be written. A page that is not the process's own is what it
/// was when memory was mapped: the file's page, or zero.
struct Candidates {
    own: Cursor,
    mapped: Cursor,
    told: Cursor,
    /// The base is what the memory was mapped from, so what is still mapped is as the base says.
    same: bool,
}

impl Candidates {
    fn new(own: Vec<(u64, u64)>, origin: &Origin, base: Option<&Chain>) -> Self {
        Candidates {
            own: Cursor::new(own),
            mapped: Cursor::new(origin.mapped.clone()),
            told: Cursor::new(base.map(Chain::present).unwrap_or_default()),
            same: base.is_some_and(|base| base.is_origin(origin)),
        }
    }

    fn look(&mut self, page: u64) -> bool {
        let (mapped, told) = (self.mapped.contains(page), self.told.contains(page));
        self.own.contains(page) || if self.same { told && !mapped } else { told || mapped }
    }
}

/// Sorted runs, asked about one page after the other.
struct Cursor {
    runs: std::vec::IntoIter<(u64, u64)>,
    current: (u64, u64),
}

impl Cursor {
    fn new(runs: Vec<(u64, u64)>) -> Self {
        Cursor { runs: runs.into_iter(), current: (0, 0) }
    }

    fn contains(&mut self, page: u64) -> bool {
        while self.current.0 + self.current.1 <= page {
            match self.runs.next() {
                Some(run) => self.current = run,
                None => return false,
            }
        }
        page >= self.current.0
    }
}

/// Reads pages from the first of that number on.
type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), Error>;

struct Writer<'a> {
    base: Option<&'a Chain>,
    pages: File,
    path: PathBuf,
    index: Index,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn create(directory: &Path, ram: u64, base: Option<&'a Chain>) -> Result<Self, Error> {
        let path = directory.join(PAGES_FILE);
        let create = || File::options().write(true).create_new(true).mode(0o600).open(&path);
        let pages = create().and_then(|pages| pages.set_len(ram).map(|()| pages));
        let pages = pages.map_err(file("create", &path))?;
        let buffer = vec![0; CHUNK_PAGES as usize * PAGE];
        Ok(Writer { base, pages, path, index: Index::new(ram), buffer })
    }

    /// Writes what is to be written of one chunk: `look` says which of its pages to look at.
    fn chunk(&mut self, number: u64, look: &[bool], read: Read) -> Result<(), Error> {
        let mut hash = None;
        let mut at = 0;
        while at < look.len() {
            let run = look[at..].iter().take_while(|&&look| look).count();
            if run > 0 {
                self.run(number + at as u64, run, read, &mut hash)?;
            }
            at += run.max(1);
        }
        self.index.digests.extend(hash.map(|hash: blake3::Hasher| *hash.finalize().as_bytes()));
        Ok(())
    }

    /// Looks at neighbouring pages and writes those that count, each run of them at once.
    fn run(
        &mut self,
        number: u64,
        count: usize,
        read: Read,
        hash: &mut Option<blake3::Hasher>,
    ) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let bytes = &mut buffer[..count * PAGE];
        read(number, bytes)?;
        let mut start = 0;
        for (at, page) in bytes.as_chunks::<PAGE>().0.iter().enumerate() {
            let kind = self.kind(page, number + at as u64)?;
            if let Some(kind) = kind {
                self.index.push(number + at as u64, kind);
            }
            if kind != Some(Kind::Data) {
                self.store(&bytes[start * PAGE..at * PAGE], number + start as u64, hash)?;
                start = at + 1;
            }
        }
        self.store(&bytes[start * PAGE..], number + start as u64, hash)?;
        self.buffer = buffer;
        Ok(())
    }

    /// What the image has to say about a page, if anything.
    fn kind(&self, page: &[u8; PAGE], number: u64) -> Result<Option<Kind>, Error> {
        // The C library's comparison is much faster than a loop.
        static ZEROES: [u8; PAGE] = [0; PAGE];
        let zero = *page == ZEROES;
        let Some(base) = self.base else { return Ok((!zero).then_some(Kind::Data)) };
        let mut before = [0; PAGE];
        base.read_page(number, &mut before)?;
        Ok((before != *page).then_some(if zero { Kind::Zero } else { Kind::Data }))
    }

    fn store(&self, bytes: &[u8], number: u64, hash: &mut Option<blake3::Hasher>) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        hash.get_or_insert_default().update(bytes);
        self.pages.write_all_at(bytes, number * PAGE as u64).map_err(file("write", &self.path))
    }

    /// Makes the pages durable.
    fn finish(self) -> Result<Written, Error> {
        self.pages.sync_all().map_err(file("write", &self.path))?;
        let bytes = |kind| {
            let runs = self.index.runs.iter().filter(|run| run.kind == kind);
            runs.map(|run| u64::from(run.count) * PAGE as u64).sum()
        };
        let index = self.index.to_bytes();
        Ok(Written { index, ram: self.index.ram, data: bytes(Kind::Data), zero: bytes(Kind::Zero) })
    }
}
