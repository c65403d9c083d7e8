//! The working set: which pages a machine has used soon after it was restored. It is recorded beside its image, and the next
//! machine has them read in the background while it runs already.
//!
//! ```text
//!  memory.used    8 bytes  "rvmm-use"       little-endian
//!                 4        format, 1
//!                 rest     one bit for each page of RAM, the lowest first: it was used
//!
//!  first run ─► read what is recorded into the host's cache ─► SOON later, or at the end ─► record it, if much is different
//! ```
//!
//! The kernel maps what its cache has together: 64 KiB, or up to 2 MiB just after the image was written. So the first record
//! may have much that was not used, until a machine has found its pages on the disk.
//!
//! It is no part of the snapshot: without it, or with a wrong one, the machine is the same and waits for its disk more
//! often. So nothing vouches for it, and one that cannot be read or written is left out.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{debug, warn};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Chain, Origin};
use crate::memory::Memory;
use crate::sys::directory::Directory;
use crate::sys::file::{self, AHEAD};
use crate::sys::frozen::PAGE;
use crate::sys::pagemap::{Pagemap, Pages};

/// File with the record, in the directory of an image.
pub const USED_FILE: &str = "memory.used";
const MAGIC: &[u8; 8] = b"rvmm-use";
const FORMAT: u32 = 1;
const HEADER: usize = 12;

/// How long after its first run what a machine uses counts.
const SOON: Duration = Duration::from_secs(10);
/// Pages that are read although they are not recorded, between two that are: one request costs as much.
const GAP: u64 = 8;

/// Pages of RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Used(Vec<u8>);

impl Used {
    /// None of `ram` bytes.
    fn none(ram: u64) -> Self {
        Used(vec![0; (ram / PAGE as u64).div_ceil(8) as usize])
    }

    /// Reads a record of `ram` bytes.
    fn parse(bytes: &[u8], ram: u64) -> Option<Self> {
        let bits = bytes.strip_prefix(MAGIC)?.strip_prefix(&FORMAT.to_le_bytes())?;
        (bits.len() == Used::none(ram).0.len()).then(|| Used(bits.to_vec()))
    }

    fn to_bytes(&self) -> Vec<u8> {
        [&MAGIC[..], &FORMAT.to_le_bytes(), &self.0].concat()
    }

    fn insert(&mut self, pages: Range<u64>) {
        for page in pages {
            self.0[page as usize / 8] |= 1 << (page % 8);
        }
    }

    fn contains(&self, page: u64) -> bool {
        self.0[page as usize / 8] & 1 << (page % 8) != 0
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }

    fn with(&self, other: &Self) -> Self {
        Used(self.0.iter().zip(&other.0).map(|(one, other)| one | other).collect())
    }

    /// Those of a range, as ranges from one to another that is close to it.
    fn within(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in pages.filter(|&page| self.contains(page)) {
            match runs.last_mut() {
                Some(run) if page - run.end <= GAP => run.end = page + 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }
}

/// What a machine that is restored has its pages read by, and records them with.
pub struct WorkingSet {
    chain: Chain,
    directory: Arc<Directory>,
    /// The thread, and the end of a channel whose closing ends it.
    work: Option<(Sender<()>, JoinHandle<()>)>,
}

impl WorkingSet {
    /// Of the memory that `chain` describes, recorded in `directory`.
    pub fn new(chain: &Chain, directory: &Arc<Directory>) -> Self {
        WorkingSet { chain: chain.clone(), directory: Arc::clone(directory), work: None }
    }

    /// Begins, for a machine that runs now. Its `memory` is mapped from the chain as `origin` says.
    pub fn start(&mut self, memory: &Arc<Memory>, origin: &Origin) {
        let (stop, stopped) = mpsc::channel();
        let (chain, directory) = (self.chain.clone(), Arc::clone(&self.directory));
        let (memory, origin) = (Arc::clone(memory), origin.clone());
        let work = move || {
            // With the priority of all others: vCPUs would wait for the locks that it holds in the kernel.
            let before = recorded(&directory, chain.ram());
            let goes_on = || stopped.try_recv() == Err(mpsc::TryRecvError::Empty);
            if let Err(error) = before.as_ref().map_or(Ok(()), |before| chain.read_ahead(before, goes_on)) {
                debug!("pages are not read ahead: {error}");
            }
            let lived = stopped.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout);
            let recorded = used(&memory, &origin, chain.ram()).and_then(|used| {
                let before = before.unwrap_or_else(|| Used::none(chain.ram()));
                // One that ended before knows of more pages, and not which are needless.
                record(&directory, &before, &if lived { used } else { before.with(&used) })
            });
            if let Err(error) = recorded {
                debug!("what the machine uses is not recorded: {error}");
            }
        };
        match thread::Builder::new().name("working-set".into()).spawn(work) {
            Ok(thread) => self.work = Some((stop, thread)),
            Err(error) => debug!("pages are not read ahead: {error}"),
        }
    }
}

impl Drop for WorkingSet {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.work.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// What is recorded for `ram` bytes, if it is there and can be believed.
fn recorded(directory: &Directory, ram: u64) -> Option<Used> {
    let bytes = directory.read(USED_FILE, (HEADER + Used::none(ram).0.len()) as u64);
    match bytes {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!("{} is left out: {error}", directory.path().join(USED_FILE).display());
            None
        }
        Ok(bytes) => Used::parse(&bytes, ram).or_else(|| {
            warn!("{} is damaged, it is made anew", directory.path().join(USED_FILE).display());
            None
        }),
    }
}

/// The pages that this process has used of those that are mapped from images.
fn used(memory: &Memory, origin: &Origin, ram: u64) -> io::Result<Used> {
    let (pagemap, mut all) = (Pagemap::open(std::process::id())?, Used::none(ram));
    let mut first = 0;
    for region in memory.iter() {
        let start = region.as_ptr() as usize;
        let end = first + region.len() / PAGE as u64;
        let touched = pagemap.find(start..start + region.len() as usize, Pages::Used)?;
        let page = |address: usize| first + ((address - start) / PAGE) as u64;
        touched.iter().for_each(|touched| all.insert(page(touched.start)..page(touched.end)));
        first = end;
    }
    let mut mapped = Used::none(ram);
    origin.mapped.iter().for_each(|&(first, count)| mapped.insert(first..first + count));
    all.0.iter_mut().zip(mapped.0).for_each(|(all, mapped)| *all &= mapped);
    Ok(all)
}

/// Records pages in place of those `before` if there are many more, or many less.
fn record(directory: &Directory, before: &Used, now: &Used) -> io::Result<()> {
    if now.count().abs_diff(before.count()) > before.count() / 4 {
        directory.put(USED_FILE, &now.to_bytes())?;
    }
    Ok(())
}

impl Chain {
    /// Has the host read pages into its cache, in the order of the files, as long as it `goes_on`.
    fn read_ahead(&self, used: &Used, goes_on: impl Fn() -> bool) -> io::Result<()> {
        for piece in self.pieces() {
            let Some(pages) = self.file(piece.layer) else { continue };
            for run in used.within(piece.first..piece.end()) {
                let bytes = run.start * PAGE as u64..run.end * PAGE as u64;
                for at in bytes.clone().step_by(AHEAD as usize) {
                    if !goes_on() {
                        return Ok(());
                    }
                    file::read_ahead(pages, at, AHEAD.min(bytes.end - at))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
