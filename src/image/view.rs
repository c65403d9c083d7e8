//! The disk of an image as bytes that can be read at any place.

use std::fs::File;
use std::io;

use super::Error;
use super::cache::Unpacked;
use super::layer::{self, BLOCK};
use crate::disk::extents::{Map, Run};

/// Bytes at places.
pub trait ReadAt {
    /// Fills `to` with what is at byte `at`; behind the end are zeroes.
    ///
    /// # Errors
    /// When the host refuses.
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> io::Result<()>;
}

/// A disk in unpacked layers.
pub struct View {
    layers: Vec<File>,
    map: Map,
    size: u64,
}

impl View {
    /// Opens the layers and their map.
    ///
    /// # Errors
    /// When the host refuses, or the map is damaged.
    pub fn open(unpacked: &Unpacked) -> Result<Self, Error> {
        let open = |path| File::open(path).map_err(Error::io("open", path));
        let layers = unpacked.layers.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
        let map =
            open(&unpacked.map).and_then(|file| Map::open(file).map_err(Error::io("read", &unpacked.map)))?;
        Ok(View { layers, map, size: unpacked.size })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the disk has data: runs of blocks, in order.
    pub(super) fn data(&mut self) -> io::Result<Vec<Run>> {
        let mut runs = self.map.runs()?;
        runs.retain(|run| run.layer.is_some());
        Ok(runs)
    }

    /// Bytes of data.
    pub(super) fn data_bytes(&mut self) -> io::Result<u64> {
        Ok(self.data()?.iter().map(|run| run.count * BLOCK).sum())
    }
}

impl ReadAt for View {
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let place = at.saturating_add(done as u64);
            if place >= self.size {
                to[done..].fill(0);
                break;
            }
            let run = self.map.lookup(place / BLOCK)?;
            let stop = run.end().saturating_mul(BLOCK).min(self.size);
            let len = (to.len() - done).min((stop - place) as usize);
            let part = &mut to[done..done + len];
            match run.layer.and_then(|layer| self.layers.get(usize::from(layer))) {
                Some(layer) => layer::read_sparse(layer, place, part)?,
                None => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }
}

/// A raw disk.
impl ReadAt for File {
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        layer::read_sparse(self, at, to)
    }
}
