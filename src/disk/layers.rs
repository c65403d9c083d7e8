//! A read-only disk that lies in several frozen layers: sparse files with the bytes at their own offsets, and one map of them all.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::extents::{BLOCK, Map};
use super::{Disk, Done, Error, Geometry, Request, SECTOR};
use crate::memory::Buffers;
use crate::sys::file;

/// The disk. Reads go to the host's page cache, which all machines over the same layers share.
pub struct Layers {
    files: Vec<Arc<File>>,
    map: Map,
    geometry: Geometry,
    done: Vec<Done>,
}

impl Layers {
    /// The disk of `size` bytes whose map is the first of `files` and whose layers, the lowest first, are the others; `path`
    /// names it in messages.
    ///
    /// # Errors
    /// When the map cannot be read or is of another disk.
    pub fn open(path: &Path, files: &[Arc<File>], size: u64) -> Result<Self, Error> {
        let (map, files) = Self::split(path, files)?;
        let found = Map::open(Arc::clone(map)).map_err(|source| Error::Io {
            action: "read map",
            path: path.into(),
            source,
        })?;
        if found.layers() != files.len()
            || found.blocks() != size.div_ceil(BLOCK)
            || !size.is_multiple_of(SECTOR)
        {
            let reason = format!(
                "it is of {} layers and {} blocks, the disk has {} and {size} bytes",
                found.layers(),
                found.blocks(),
                files.len()
            );
            return Err(Error::Layers { path: path.into(), reason });
        }
        let geometry = Geometry { size, physical_block: BLOCK as u32, read_only: true, discard: false };
        Ok(Layers { files: files.to_vec(), map: found, geometry, done: Vec::new() })
    }

    /// The disk of an image that was unpacked: its layers are as long as the disk.
    ///
    /// # Errors
    /// As above.
    pub fn of_image(path: &Path, files: &[Arc<File>]) -> Result<Self, Error> {
        let (_, layers) = Self::split(path, files)?;
        let lowest = layers
            .first()
            .ok_or_else(|| Error::Layers { path: path.into(), reason: "it has none".into() })?;
        let found = lowest.metadata();
        let found =
            found.map_err(|source| Error::Io { action: "look at a layer of", path: path.into(), source })?;
        Self::open(path, files, found.len())
    }

    fn split<'a>(path: &Path, files: &'a [Arc<File>]) -> Result<(&'a Arc<File>, &'a [Arc<File>]), Error> {
        files
            .split_first()
            .ok_or_else(|| Error::Layers { path: path.into(), reason: "it is not there".into() })
    }

    fn read(&mut self, offset: u64, buffers: &Buffers) -> std::io::Result<()> {
        let end = offset + buffers.len() as u64;
        let mut at = offset;
        while at < end {
            let run = self.map.lookup(at / BLOCK)?;
            let stop = end.min(run.end().saturating_mul(BLOCK));
            let (skip, len) = ((at - offset) as usize, (stop - at) as usize);
            match run.layer.and_then(|layer| self.files.get(usize::from(layer))) {
                None => drop(buffers.zero_at(skip, len)),
                Some(layer) => {
                    let part = buffers.part(skip, len);
                    let mut done = 0;
                    while done < len {
                        match file::read_at(layer, &part, done, at + done as u64)? {
                            // Zeroes at the end of a sparse file need not be there.
                            0 => done += part.zero_at(done, len - done),
                            count => done += count,
                        }
                    }
                }
            }
            at = stop;
        }
        Ok(())
    }
}

impl Disk for Layers {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        let result = match &request {
            Request::Read { offset, buffers } => self.read(*offset, buffers),
            Request::Flush => Ok(()),
            _ => Err(std::io::Error::from_raw_os_error(libc::EROFS)),
        };
        self.done.push(Done { tag, request, result });
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::extents::{Run, append, merge, write};
    use super::super::model::Model;
    use super::super::{Engine, Overlay};
    use super::*;
    use crate::testing::Random;

    fn opened(directory: &Path, name: &str) -> Arc<File> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(directory.join(name));
        Arc::new(file.unwrap())
    }

    /// Random layers in a directory, and the bytes that they make.
    fn layers(directory: &Path, depth: u16, size: usize) -> (Layers, Vec<u8>) {
        let blocks = (size as u64).div_ceil(BLOCK);
        let (mut random, mut merged, mut bytes) = (Random(depth.into()), Vec::new(), vec![0; size]);
        let mut files = vec![opened(directory, "map")];
        for layer in 0..depth {
            let file = opened(directory, &layer.to_string());
            let (mut runs, mut at) = (Vec::new(), random.below(9));
            while at < blocks {
                let count = (1 + random.below(6)).min(blocks - at);
                let place = (!random.once_in(5)).then_some(layer);
                append(&mut runs, Run { start: at, count, layer: place });
                let range = (at * BLOCK) as usize..size.min(((at + count) * BLOCK) as usize);
                bytes[range.clone()].fill(if place.is_some() { layer as u8 + 1 } else { 0 });
                if place.is_some() {
                    file.write_all_at(&bytes[range.clone()], range.start as u64).unwrap();
                }
                at += count + random.below(30);
            }
            merged = merge(&merged, &runs);
            files.push(file);
        }
        write(&merged, files.len() - 1, blocks, &mut files[0].as_ref()).unwrap();
        (Layers::open(directory, &files, size as u64).unwrap(), bytes)
    }

    #[test]
    fn reads_what_the_highest_layer_says() {
        for depth in [0, 1, 8, 32] {
            let directory = tempfile::tempdir().unwrap();
            let (mut disk, bytes) = layers(directory.path(), depth, (1 << 20) - 512);
            let mut model = Model::new(&bytes, 5);
            model.play(&mut disk, 60);
            model.compare(&mut disk);
        }
    }

    #[test]
    fn an_overlay_stands_on_layers() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, bytes) = layers(directory.path(), 8, 1 << 20);
        let mut disk = Overlay::nameless(directory.path(), Box::new(disk), Some(Engine::Sync)).unwrap();
        let mut model = Model::new(&bytes, 6);
        model.play(&mut disk, 200);
        model.compare(&mut disk);
    }

    #[test]
    fn refuses_the_map_of_another_disk() {
        let directory = tempfile::tempdir().unwrap();
        layers(directory.path(), 2, 1 << 20);
        let [map, layer] = ["map", "0"].map(|name| opened(directory.path(), name));
        let refused = |files: &[&Arc<File>], size| {
            let files: Vec<_> = files.iter().map(|&file| Arc::clone(file)).collect();
            assert!(Layers::open(directory.path(), &files, size).is_err());
        };
        refused(&[&map, &layer], 1 << 20);
        refused(&[&map, &layer, &layer], 1 << 21);
        refused(&[&layer], 1 << 20);
        refused(&[], 1 << 20);
    }
}
