//! Memory that is filled when it is touched, and in the background until all of it is there.
//!
//! ```text
//!   vCPU, device ── touches a page that is missing ──► userfaultfd ──► thread: reads its 2 MiB from the source, compares
//!                ◄───────────── goes on ──────────────────────────────         them with their digest, fills them
//!                                                                      nobody waits: the next 2 MiB
//! ```
//!
//! What a chain says nothing about is zero and needs nobody. When the source fails, or its pages are not those that were saved, what
//! is missing can never be touched again: the machine ends rather than that it goes on with something else.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Error;
use super::index::CHUNK_PAGES;
use super::map::{Chain, Piece};
use super::serve::Source;
use crate::memory::Memory;
use crate::sys::frozen::PAGE;
use crate::sys::lock;
use crate::sys::ranges::append;
use crate::sys::userfaultfd::Userfaultfd;

/// Memory that is being filled. When this value is dropped, what is missing stays so.
pub struct Lazy {
    shared: Arc<Shared>,
    socket: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    over: Mutex<bool>,
    changed: Condvar,
}

impl Shared {
    fn finish(&self) {
        *lock(&self.over) = true;
        self.changed.notify_all();
    }
}

/// Waits for the end of the work.
#[derive(Clone)]
pub struct Filled(Arc<Shared>);

impl Filled {
    /// Returns when nothing is done any more, be it that all is there.
    pub fn wait(&self) {
        let mut over = lock(&self.0.over);
        while !*over {
            over = self.0.changed.wait(over).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Lazy {
    /// Begins to fill `memory`, which nobody has touched yet, with what `chain` describes. `failed` is called when that cannot go on.
    pub fn start(
        chain: &Chain,
        source: Source,
        memory: &Arc<Memory>,
        failed: impl FnOnce(&Error) + Send + 'static,
    ) -> Result<Self, Error> {
        let faults = Userfaultfd::open().map_err(Error::Userfaultfd)?;
        let chunks = chunks(chain, memory);
        for range in joined(&chunks) {
            // SAFETY: the range lies in one region of guest RAM, which is private and anonymous, has whole pages and is
            // only reached through raw pointers.
            unsafe { faults.register(range.start, range.len()) }.map_err(Error::Userfaultfd)?;
        }
        let socket = source.socket().map_err(Error::Userfaultfd)?;
        let shared = Arc::new(Shared::default());
        let mut filler = Filler {
            faults,
            chain: chain.clone(),
            source,
            chunks,
            _memory: Arc::clone(memory),
            shared: Arc::clone(&shared),
        };
        let work = move || {
            if let Err(error) = filler.run() {
                failed(&error);
                filler.forbid();
            }
            filler.shared.finish();
        };
        let thread = thread::Builder::new().name("memory".into()).spawn(work).map_err(Error::Userfaultfd)?;
        Ok(Lazy { shared, socket, thread: Some(thread) })
    }

    /// A way to wait until all is there; `None` if it is.
    pub fn under_way(&self) -> Option<Filled> {
        let over = *lock(&self.shared.over);
        (!over).then(|| Filled(Arc::clone(&self.shared)))
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// 2 MiB of RAM with something in them, or less at the end of a region.
struct Chunk {
    /// Where they are in this process.
    address: usize,
    len: usize,
    /// Number of the first page.
    first: u64,
    /// What is in them.
    pieces: Vec<Piece>,
    filled: bool,
}

impl Chunk {
    fn end(&self) -> usize {
        self.address + self.len
    }
}

/// The chunks that have data, by address.
fn chunks(chain: &Chain, memory: &Memory) -> Vec<Chunk> {
    let mut pieces = chain.pieces().into_iter().peekable();
    let (mut chunks, mut number) = (Vec::new(), 0);
    for region in memory.iter() {
        let pages = region.len() / PAGE as u64;
        // A chunk never crosses the border of a region: regions are multiples of 2 MiB or the last one.
        for first in (0..pages).step_by(CHUNK_PAGES as usize) {
            let count = CHUNK_PAGES.min(pages - first);
            let (start, end) = (number + first, number + first + count);
            let mut within = Vec::new();
            while let Some(piece) = pieces.next_if(|piece| piece.end() <= end) {
                within.push(piece.from(start));
            }
            within.extend(
                pieces.peek().filter(|piece| piece.first < end).map(|piece| piece.from(start).until(end)),
            );
            if !within.is_empty() {
                chunks.push(Chunk {
                    address: region.as_ptr() as usize + first as usize * PAGE,
                    len: count as usize * PAGE,
                    first: start,
                    pieces: within,
                    filled: false,
                });
            }
        }
        number += pages;
    }
    chunks.sort_by_key(|chunk| chunk.address);
    chunks
}

/// Neighbouring chunks as ranges of addresses.
fn joined(chunks: &[Chunk]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    chunks.iter().for_each(|chunk| append(&mut ranges, chunk.address..chunk.end()));
    ranges
}

struct Filler {
    faults: Userfaultfd,
    chain: Chain,
    source: Source,
    chunks: Vec<Chunk>,
    _memory: Arc<Memory>,
    shared: Arc<Shared>,
}

impl Filler {
    /// Works until all is there or nobody needs it any more.
    fn run(&mut self) -> Result<(), Error> {
        let mut next = 0;
        while next < self.chunks.len() && !self.shared.stop.load(Ordering::SeqCst) {
            // Whoever waits comes first.
            let waiting = self.faults.wait(Duration::ZERO).map_err(Error::Userfaultfd)?;
            let wanted = waiting.and_then(|address| self.at(address)).unwrap_or(next);
            self.fill(wanted)?;
            while self.chunks.get(next).is_some_and(|chunk| chunk.filled) {
                next += 1;
            }
        }
        // Nothing is registered any more, and whoever waited was let go.
        Ok(())
    }

    /// The chunk that an address is in.
    fn at(&self, address: usize) -> Option<usize> {
        let index = self.chunks.partition_point(|chunk| chunk.end() <= address);
        self.chunks.get(index).filter(|chunk| chunk.address <= address).map(|_| index)
    }

    /// Fills a chunk and lets everybody go on who waits for it.
    fn fill(&mut self, index: usize) -> Result<(), Error> {
        let chunk = &self.chunks[index];
        if chunk.filled {
            return Ok(());
        }
        let mut layers: Vec<usize> = chunk.pieces.iter().map(|piece| piece.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        for layer in layers {
            let runs = self.chain.read_chunk(layer, chunk.first / CHUNK_PAGES, &mut self.source)?;
            for piece in chunk.pieces.iter().filter(|piece| piece.layer == layer) {
                for (first, bytes) in &runs {
                    let pages = bytes.len() as u64 / PAGE as u64;
                    let (from, to) = (piece.first.max(*first), piece.end().min(first + pages));
                    if from < to {
                        let part = (from - first) as usize * PAGE..(to - first) as usize * PAGE;
                        let address = chunk.address + (from - chunk.first) as usize * PAGE;
                        self.faults.copy(address, &bytes[part]).map_err(Error::Userfaultfd)?;
                    }
                }
            }
        }
        self.faults.unregister(chunk.address, chunk.len).map_err(Error::Userfaultfd)?;
        self.chunks[index].filled = true;
        Ok(())
    }

    /// Makes sure that nobody ever sees what is not there: the guest's accesses fail from now on.
    fn forbid(&self) {
        for chunk in self.chunks.iter().filter(|chunk| !chunk.filled) {
            let start = chunk.address as *mut libc::c_void;
            // SAFETY: the range is guest RAM, mapped as long as `_memory` lives, and no Rust reference leads to it.
            unsafe { libc::mprotect(start, chunk.len, libc::PROT_NONE) };
            let _ = self.faults.unregister(chunk.address, chunk.len);
        }
    }
}
