//! Comparing all that images have with what their indices say.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Chain, Layer};
use crate::memory::image::index::{CHUNK_PAGES, Kind};
use crate::memory::image::{Error, Source, file};
use crate::sys::file::{next_data, next_hole};
use crate::sys::frozen::PAGE;

/// Bytes that are read at once where nothing should be.
const STEP: u64 = 1 << 20;

impl Chain {
    /// Reads every page and compares it with its digest. Where the index has no pages the files must have nothing: holes are mapped
    /// with the runs around them. `progress` is told the bytes after each chunk.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<(), Error> {
        for (number, layer) in self.layers.iter().enumerate() {
            for &chunk in &layer.chunks {
                let runs = self.read_chunk(number, chunk, &mut Source::Files)?;
                progress(runs.iter().map(|(_, bytes)| bytes.len() as u64).sum());
            }
            let mut from = 0;
            for run in layer.index.runs.iter().filter(|run| run.kind == Kind::Data) {
                layer.has_nothing(from..run.first * PAGE as u64)?;
                from = run.end() * PAGE as u64;
            }
            layer.has_nothing(from..layer.index.ram)?;
        }
        Ok(())
    }
}

impl Layer {
    /// Refuses anything but zeroes in a range of bytes.
    fn has_nothing(&self, range: Range<u64>) -> Result<(), Error> {
        let pages = self.pages()?;
        let failed = || file("read", &self.path);
        let mut at = range.start;
        while at < range.end
            && let Some(data) = next_data(pages, at).map_err(failed())?.filter(|&data| data < range.end)
        {
            at = next_hole(pages, data).map_err(failed())?.min(data + STEP).min(range.end);
            let mut bytes = vec![0; (at - data) as usize];
            pages.read_exact_at(&mut bytes, data).map_err(failed())?;
            if bytes.iter().any(|&byte| byte != 0) {
                let chunk = CHUNK_PAGES * PAGE as u64;
                return Err(Error::Pages { path: self.path.clone(), offset: data / chunk * chunk });
            }
        }
        Ok(())
    }
}
