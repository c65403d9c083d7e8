//! From images to guest RAM: what a chain of images says of each page, mapped copy-on-write or copied.

mod verify;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::index::{CHUNK_PAGES, Digest, Index, Kind, Run};
use super::{Error, INDEX_FILE, PAGES_FILE, Source, file};
use crate::memory::{self, Memory, Pages};
use crate::sys::directory::Directory;
use crate::sys::file::directory_of;
use crate::sys::frozen::PAGE;

/// Runs shorter than this are copied: a mapping of its own costs more than a few pages.
const WORTH_MAPPING: u64 = 16;
/// Most runs that are mapped: half of what the kernel allows by default (vm.max_map_count, 65530), as there may be another
/// mapping between any two of them, and some are for everything else.
const MOST_MAPPED: usize = 30_000;
/// Holes up to this length between two runs of one file are mapped with them: they read as zeroes, as they should.
const GAP: u64 = 64;

/// Pages that are read before it is told how far the work is: 16 MiB.
const READ_AT_ONCE: u64 = 4096;

/// How a machine gets its memory from images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Mapped copy-on-write: nothing is read before it is used, and the files must stay.
    #[default]
    Cow,
    /// Read at once: the files are not needed any more.
    Copy,
    /// Read when it is used, and in the background until all is there: from the files, or through the Unix socket of a server.
    Lazy(Option<PathBuf>),
}

/// Images from the top to the last. Cheap to clone.
#[derive(Clone, Default)]
pub struct Chain {
    layers: Vec<Arc<Layer>>,
    ram: u64,
}

struct Layer {
    path: PathBuf,
    /// `None` when they are elsewhere.
    pages: Option<File>,
    /// Numbers of the chunks with data: those that have digests.
    chunks: Vec<u64>,
    index: Index,
    /// Digest of the index, and so of the pages.
    digest: Digest,
}

impl Layer {
    fn pages(&self) -> Result<&File, Error> {
        let elsewhere = || io::Error::new(io::ErrorKind::NotFound, "it is not here");
        self.pages.as_ref().ok_or_else(|| file("open", &self.path)(elsewhere()))
    }
}

/// A run of pages with the layer that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub first: u64,
    pub count: u64,
    pub layer: usize,
}

impl Piece {
    /// Number of the first page behind it.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Its part from page `first` on.
    pub fn from(&self, first: u64) -> Self {
        let first = self.first.max(first);
        Piece { first, count: self.end() - first, ..*self }
    }

    /// Pieces of it that are read in one go: as much as takes some milliseconds.
    fn cut(self) -> impl Iterator<Item = Piece> {
        let starts = (self.first..self.end()).step_by(READ_AT_ONCE as usize);
        starts.map(move |first| self.from(first).until(first + READ_AT_ONCE))
    }

    /// Its part before page `end`.
    pub fn until(&self, end: u64) -> Self {
        Piece { count: self.end().min(end) - self.first, ..*self }
    }
}

/// Which pages of a guest's RAM are mapped from files, and from which chain: they have contents although this process
/// has never touched them.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Runs of (first page, pages), sorted.
    pub mapped: Vec<(u64, u64)>,
    /// The chain: the digests of its images.
    chain: Vec<Digest>,
}

impl Chain {
    /// Puts the image in `directory`, whose index is `index`, below those that are there. Its pages may be elsewhere.
    pub fn push(&mut self, directory: &Directory, index: &[u8], pages_are_here: bool) -> Result<(), Error> {
        let (index, digest) = Index::read(index, &directory.path().join(INDEX_FILE))?;
        let path = directory.path().join(PAGES_FILE);
        let open = || {
            let pages = directory.file(PAGES_FILE)?;
            match pages.metadata()?.len() == index.ram {
                true => Ok(pages),
                false => Err(io::Error::other("its length is not that of the RAM: it is cut off")),
            }
        };
        let pages = pages_are_here.then(open).transpose().map_err(file("open", &path))?;
        if self.layers.is_empty() {
            self.ram = index.ram;
        } else if index.ram != self.ram {
            return Err(Error::Size { path, found: index.ram, wanted: self.ram });
        }
        let chunks = index.chunks();
        self.layers.push(Arc::new(Layer { path, pages, chunks, index, digest }));
        Ok(())
    }

    /// How many images there are.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The directories of the images, the top first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.layers.iter().map(|layer| directory_of(&layer.path))
    }

    /// Bytes of RAM.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// Bytes of RAM that the files hold.
    pub fn data(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.count * PAGE as u64).sum()
    }

    /// Refuses memory of another size.
    pub fn check_size(&self, wanted: u64) -> Result<(), Error> {
        if wanted == self.ram {
            return Ok(());
        }
        let path = self.layers.first().map(|layer| layer.path.clone()).unwrap_or_default();
        Err(Error::Size { path, found: self.ram, wanted })
    }

    /// For every page that is not zero, the layer that has it.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        let mut said: Vec<(Run, usize)> = Vec::new();
        for (layer, index) in self.layers.iter().map(|layer| &layer.index).enumerate() {
            said = merge(&said, &index.runs, layer);
        }
        let data = said.iter().filter(|(run, _)| run.kind == Kind::Data);
        data.map(|&(run, layer)| Piece { first: run.first, count: run.count.into(), layer }).collect()
    }

    /// Maps the memory that the chain describes over `ranges` of (address, bytes), copy-on-write: nothing is read yet. What is
    /// copied at once is in host pages of the kind `wanted`, and `progress` is told how many bytes of how many.
    ///
    /// # Errors
    /// The ranges are not as long as the chain's RAM, or the host cannot map.
    pub fn map(
        &self,
        ranges: &[(GuestAddress, u64)],
        mode: &Mode,
        wanted: Pages,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Memory, Origin), Error> {
        let copy = *mode == Mode::Copy;
        self.check_size(ranges.iter().map(|range| range.1).sum())?;
        let pages = match mode {
            Mode::Cow => Pages::Small,
            Mode::Copy => wanted,
            Mode::Lazy(_) => Pages::Transparent,
        };
        let memory = memory::allocate(ranges, pages)?;
        let mut origin = Origin { mapped: Vec::new(), chain: self.digests().collect() };
        if matches!(mode, Mode::Lazy(_)) {
            return Ok((memory, origin));
        }
        let pieces = if copy { self.pieces() } else { self.join(self.pieces()) };
        let mut mapped = Mapped::of(&pieces);
        let (pieces, copies): (Vec<_>, Vec<_>) =
            pieces.into_iter().partition(|piece| !copy && mapped.take(piece.count));
        let (mut done, total) = (0, copies.iter().map(|piece| piece.count * PAGE as u64).sum());
        let copies = copies.into_iter().flat_map(Piece::cut).flat_map(|piece| split(&memory, piece));
        for (region, piece, offset) in copies {
            let layer = &self.layers[piece.layer];
            let (at, len) = (piece.first * PAGE as u64, (piece.count * PAGE as u64) as usize);
            memory::read_file(region, offset, layer.pages()?, at, len).map_err(file("read", &layer.path))?;
            done += len as u64;
            progress(done, total);
        }
        // Before files are mapped, as it is not for those.
        if pages == Pages::Small {
            memory::allow_huge_pages(&memory);
        }
        for (region, piece, offset) in pieces.into_iter().flat_map(|piece| split(&memory, piece)) {
            let layer = &self.layers[piece.layer];
            let (at, len) = (piece.first * PAGE as u64, piece.count * PAGE as u64);
            memory::map_file(region, offset, layer.pages()?, at, len).map_err(file("map", &layer.path))?;
            origin.mapped.push((piece.first, piece.count));
        }
        Ok((memory, origin))
    }

    /// Joins pieces of one layer over short gaps, where its file has holes.
    fn join(&self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match joined.last_mut() {
                Some(last)
                    if last.layer == piece.layer && self.is_hole(piece.layer, last.end()..piece.first) =>
                {
                    last.count = piece.end() - last.first;
                }
                _ => joined.push(piece),
            }
        }
        joined
    }

    /// Whether a short run of pages has no data in the layer. A page that an upper layer says is zero may have some.
    fn is_hole(&self, layer: usize, pages: Range<u64>) -> bool {
        let runs = &self.layers[layer].index.runs;
        let from = runs.partition_point(|run| run.end() <= pages.start);
        let mut within = runs[from..].iter().take_while(|run| run.first < pages.end);
        pages.end - pages.start <= GAP && within.all(|run| run.kind == Kind::Zero)
    }

    /// Reads one page as the chain describes it.
    pub fn read_page(&self, page: u64, to: &mut [u8; PAGE]) -> Result<(), Error> {
        for layer in &self.layers {
            let found = layer.index.runs.partition_point(|run| run.end() <= page);
            match layer.index.runs.get(found).filter(|run| run.first <= page) {
                Some(Run { kind: Kind::Zero, .. }) => break,
                Some(_) => {
                    let read = layer.pages()?.read_exact_at(to, page * PAGE as u64);
                    return read.map_err(file("read", &layer.path));
                }
                None => {}
            }
        }
        to.fill(0);
        Ok(())
    }

    /// Whether `origin`'s memory was mapped from this chain, or one that has the same in it.
    pub fn is_origin(&self, origin: &Origin) -> bool {
        self.digests().eq(origin.chain.iter().copied())
    }

    fn digests(&self) -> impl Iterator<Item = Digest> {
        self.layers.iter().map(|layer| layer.digest)
    }

    /// The pages that are not zero, as runs of (first, pages).
    pub fn present(&self) -> Vec<(u64, u64)> {
        self.pieces().iter().map(|piece| (piece.first, piece.count)).collect()
    }

    /// Reads what a layer has of one chunk and compares it with its digest: runs of pages, each with the number of the
    /// first.
    pub(super) fn read_chunk(
        &self,
        layer: usize,
        chunk: u64,
        source: &mut Source,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let Layer { path, index, chunks, .. } = self.layers[layer].as_ref();
        let (start, end) = (chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES);
        let (mut runs, mut hash) = (Vec::new(), blake3::Hasher::new());
        let from = index.runs.partition_point(|run| run.end() <= start);
        let within = index.runs[from..].iter().take_while(|run| run.first < end);
        for run in within.filter(|run| run.kind == Kind::Data) {
            let (first, last) = (run.first.max(start), run.end().min(end));
            let mut bytes = vec![0; ((last - first) * PAGE as u64) as usize];
            source.read(self, layer, first, &mut bytes)?;
            hash.update(&bytes);
            runs.push((first, bytes));
        }
        let digest = chunks.binary_search(&chunk).ok().and_then(|at| index.digests.get(at));
        match digest == Some(hash.finalize().as_bytes()) {
            true => Ok(runs),
            false => Err(Error::Pages { path: path.clone(), offset: start * PAGE as u64 }),
        }
    }

    /// Reads pages of a layer from its file.
    pub(super) fn read_file(&self, layer: usize, first: u64, to: &mut [u8]) -> Result<(), Error> {
        let layer = &self.layers[layer];
        layer.pages()?.read_exact_at(to, first * PAGE as u64).map_err(file("read", &layer.path))
    }

    /// The pages of a layer, if they are here.
    pub(super) fn file(&self, layer: usize) -> Option<&File> {
        self.layers.get(layer)?.pages.as_ref()
    }
}

/// Which pieces are mapped: all that are worth it, or the longest if there are too many for the kernel.
struct Mapped {
    /// Shorter ones are copied, and of those of this length all but some.
    shortest: u64,
    some: usize,
}

impl Mapped {
    fn of(pieces: &[Piece]) -> Self {
        let counts = pieces.iter().map(|piece| piece.count);
        let mut counts: Vec<u64> = counts.filter(|&count| count >= WORTH_MAPPING).collect();
        if counts.len() <= MOST_MAPPED {
            return Mapped { shortest: WORTH_MAPPING, some: MOST_MAPPED };
        }
        let (longest, &mut shortest, _) =
            counts.select_nth_unstable_by(MOST_MAPPED - 1, |one, other| other.cmp(one));
        let longer = longest.iter().filter(|&&count| count > shortest).count();
        Mapped { shortest, some: MOST_MAPPED - longer }
    }

    fn take(&mut self, count: u64) -> bool {
        if count != self.shortest {
            return count > self.shortest;
        }
        let taken = self.some > 0;
        self.some -= usize::from(taken);
        taken
    }
}

/// Adds what a lower layer says to what the layers above have said.
fn merge(above: &[(Run, usize)], below: &[Run], layer: usize) -> Vec<(Run, usize)> {
    let mut merged = above.to_vec();
    for &run in below {
        let part = |first: u64, end: u64| (Run { first, count: (end - first) as u32, ..run }, layer);
        let mut at = run.first;
        let from = above.partition_point(|(top, _)| top.end() <= run.first);
        for (top, _) in above[from..].iter().take_while(|(top, _)| top.first < run.end()) {
            if top.first > at {
                merged.push(part(at, top.first));
            }
            at = top.end();
        }
        if at < run.end() {
            merged.push(part(at, run.end()));
        }
    }
    merged.sort_unstable_by_key(|(run, _)| run.first);
    merged
}

/// The parts of a piece in each region of RAM, with their offset in the region in bytes.
fn split(memory: &Memory, piece: Piece) -> Vec<(&vm_memory::GuestRegionMmap, Piece, u64)> {
    let (mut start, mut parts) = (0, Vec::new());
    for region in memory.iter() {
        let end = start + region.len() / PAGE as u64;
        let (first, last) = (piece.first.max(start), piece.end().min(end));
        if first < last {
            parts.push((
                region,
                Piece { first, count: last - first, ..piece },
                (first - start) * PAGE as u64,
            ));
        }
        start = end;
    }
    parts
}

#[cfg(test)]
mod tests;
