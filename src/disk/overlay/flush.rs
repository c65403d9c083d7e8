//! Making an overlay durable: first its blocks, then the pages of the map that tell about them. What it stands on comes first
//! if that was written to until the overlay was put on top: the guest's flush is for all that it wrote before.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::file::{self, Layout};
use super::map::{PAGE, Words};
use super::{Disk, Done, FLUSH, Overlay, Request};
use crate::memory::{Buffers, Pages, allocate};
use crate::sys::file::sync_directory;
use crate::sys::lock;

/// What is being flushed. One flush at a time: what is asked meanwhile is answered by the next.
#[derive(Default)]
pub struct Flushing {
    /// Asked and not started.
    waiting: Vec<u64>,
    /// Answered by the flush that is running.
    tags: Vec<u64>,
    /// Pages as they were when it started: what changed later is not durable yet.
    pages: Vec<(u64, Box<Words>)>,
    step: Step,
    /// Requests of this step that are not finished.
    left: usize,
    error: Option<io::Error>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Step {
    #[default]
    None,
    Blocks,
    Pages,
    Last,
}

impl Overlay {
    pub(super) fn flush(&mut self, tag: u64) {
        if self.nameless {
            return self.done.push(Done { tag, request: Request::Flush, result: Ok(()) });
        }
        self.flushing.waiting.push(tag);
        if self.flushing.step == Step::None {
            self.start_flush();
        }
    }

    fn start_flush(&mut self) {
        self.flushing.tags = std::mem::take(&mut self.flushing.waiting);
        self.flushing.step = Step::Blocks;
        if !self.base_is_durable {
            self.flushing.left += 1;
            self.ask_base(FLUSH, Request::Flush);
        }
        if !self.sealing.as_ref().is_some_and(|sealing| sealing.is_finished()) {
            self.flushing.pages = self.map.take_dirty();
            self.flushing.left += 1;
            self.ask_top(FLUSH, Request::Flush);
        }
        if self.flushing.left == 0 {
            self.end_flush();
        }
    }

    /// A request of the running flush is finished.
    pub(super) fn continue_flush(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.flushing.error.get_or_insert(error);
        }
        self.flushing.left -= 1;
        if self.flushing.left > 0 {
            return;
        }
        let failed = self.flushing.error.is_some();
        self.base_is_durable |= !failed;
        match self.flushing.step {
            Step::Blocks if !failed && !self.flushing.pages.is_empty() => self.write_pages(),
            Step::Pages if !failed => {
                self.flushing.step = Step::Last;
                self.flushing.left = 1;
                self.ask_top(FLUSH, Request::Flush);
            }
            _ => self.end_flush(),
        }
    }

    fn write_pages(&mut self) {
        let pages = &self.flushing.pages;
        let len = pages.len() as u64 * PAGE;
        let memory = match allocate(&[(GuestAddress(0), len)], Pages::Transparent) {
            Ok(memory) => Arc::new(memory),
            Err(error) => {
                self.flushing.error = Some(io::Error::other(error));
                return self.end_flush();
            }
        };
        let mut writes = Vec::with_capacity(pages.len());
        for (place, (index, words)) in (0..).step_by(PAGE as usize).map(GuestAddress).zip(pages) {
            let mut buffers = Buffers::new(&memory);
            // Both lie within `memory` by its length.
            let _ = memory.write_slice(&file::bytes(words), place);
            let _ = buffers.push(place, PAGE as usize);
            writes.push(Request::Write { offset: self.layout.page(*index), buffers });
        }
        self.flushing.step = Step::Pages;
        self.flushing.left = writes.len();
        for write in writes {
            self.ask_top(FLUSH, write);
        }
    }

    fn end_flush(&mut self) {
        if self.flushing.error.is_none()
            && let Some(directory) = self.unnamed.take()
            && let Err(error) = sync_directory(&directory)
        {
            (self.flushing.error, self.unnamed) = (Some(error), Some(directory));
        }
        let error = self.flushing.error.take();
        let pages = std::mem::take(&mut self.flushing.pages);
        if error.is_some() {
            pages.iter().for_each(|(index, _)| self.map.put_back(*index));
        }
        for tag in std::mem::take(&mut self.flushing.tags) {
            let result = error.as_ref().map_or(Ok(()), |error| Err(copy(error)));
            self.done.push(Done { tag, request: Request::Flush, result });
        }
        self.flushing.step = Step::None;
        if !self.flushing.waiting.is_empty() {
            self.start_flush();
        }
    }

    /// Ends writing to this overlay, at once: it is read-only from now on and can be the base of another. Nothing of it is
    /// written: [`Sealing::finish`] makes it durable, or a flush of what stands on it.
    ///
    /// # Errors
    /// Requests are under way: drain them first. Or nothing was written yet, and the host makes no file.
    pub fn seal(&mut self) -> io::Result<Arc<Sealing>> {
        if !self.is_idle() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        // Others may read what does not change any more.
        let file = Arc::clone(self.top.made()?.file());
        file::share(&file);
        self.geometry.read_only = true;
        self.geometry.discard = false;
        let sealing = Arc::new(Sealing {
            file,
            layout: self.layout,
            pages: Mutex::new(self.map.dirty()),
            finished: AtomicBool::new(false),
        });
        self.sealing = Some(Arc::clone(&sealing));
        Ok(sealing)
    }
}

impl Drop for Overlay {
    /// A guest that switches itself off need not flush: a raw file would have what it wrote.
    fn drop(&mut self) {
        if self.nameless {
            return;
        }
        self.drain(&mut Vec::new());
        let saved = match &self.sealing {
            Some(sealing) => sealing.finish(),
            None => self.save_map(),
        };
        if let Err(error) = saved {
            log::error!("an overlay lacks what was written to it last: {error}");
        }
    }
}

impl Overlay {
    /// Writes what the file does not have of the map.
    fn save_map(&mut self) -> io::Result<()> {
        let pages = self.map.take_dirty();
        match self.file() {
            Some(file) if !pages.is_empty() => write_pages(file, self.layout, &pages),
            _ => Ok(()),
        }
    }
}

/// Makes blocks durable, and then the pages of the map that tell about them.
fn write_pages(file: &File, layout: Layout, pages: &[(u64, Box<Words>)]) -> io::Result<()> {
    file.sync_data()?;
    layout.write_pages(file, pages)?;
    file.sync_data()
}

/// The rest of sealing an overlay, which takes time and can be done on any thread, by everybody who needs it done: who comes
/// second waits for the first, and does it again if that one failed.
#[must_use = "the overlay is not durable until it is finished"]
pub struct Sealing {
    pub(in crate::disk) file: Arc<File>,
    layout: Layout,
    /// Pages of the map that are not in the file yet.
    pages: Mutex<Vec<(u64, Box<Words>)>>,
    finished: AtomicBool,
}

impl Sealing {
    /// Makes the overlay durable and marks it as sealed, if that is not done yet.
    ///
    /// # Errors
    /// The host's, as it was. The overlay can still be read, and is not sealed when it is opened again.
    pub fn finish(&self) -> io::Result<()> {
        let mut pages = lock(&self.pages);
        if self.is_finished() {
            return Ok(());
        }
        write_pages(&self.file, self.layout, &pages)?;
        self.layout.write_footer(&self.file, true)?;
        self.file.sync_all()?;
        *pages = Vec::new();
        self.finished.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether it is durable.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }
}

/// An error for several askers.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
