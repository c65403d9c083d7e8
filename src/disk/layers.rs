//! A read-only disk that lies in several frozen layers: sparse files with the bytes at their own offsets, and one map of them all.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::extents::{BLOCK, Map};
use super::{Disk, Done, Error, Geometry, Request, SECTOR};
use crate::memory::Buffers;
use crate::sys::file;

/// The disk. Reads go to the host's page cache, which all machines over the same layers share.
pub struct Layers {
    files: Vec<File>,
    map: Map,
    geometry: Geometry,
    done: Vec<Done>,
}

impl Layers {
    /// The disk of `size` bytes whose layers, the lowest first, are the files `layers`, and whose map is in `map`.
    ///
    /// # Errors
    /// When a file cannot be opened or the map is of another disk.
    pub fn open(map: &Path, layers: &[PathBuf], size: u64) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { action: "open layer", path, source }
        };
        let open = |path: &Path| File::open(path).map_err(failed(path));
        let files = layers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let found = Map::open(open(map)?).map_err(failed(map))?;
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
            return Err(Error::Layers { path: map.into(), reason });
        }
        let geometry = Geometry { size, physical_block: BLOCK as u32, read_only: true, discard: false };
        Ok(Layers { files, map: found, geometry, done: Vec::new() })
    }

    /// The disk of an image that was unpacked: its layers are as long as the disk.
    ///
    /// # Errors
    /// As above.
    pub fn of_image(map: &Path, layers: &[PathBuf]) -> Result<Self, Error> {
        let lowest =
            layers.first().ok_or_else(|| Error::Layers { path: map.into(), reason: "it has none".into() })?;
        let found = std::fs::metadata(lowest);
        let found =
            found.map_err(|source| Error::Io { action: "open layer", path: lowest.clone(), source })?;
        Self::open(map, layers, found.len())
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
    use std::path::PathBuf;

    use super::super::extents::{Run, append, merge, write};
    use super::super::model::Model;
    use super::super::{Engine, Overlay};
    use super::*;
    use crate::testing::Random;

    /// Random layers in a directory, and the bytes that they make.
    fn layers(directory: &Path, depth: u16, size: usize) -> (Layers, Vec<u8>) {
        let blocks = (size as u64).div_ceil(BLOCK);
        let (mut random, mut merged, mut bytes) = (Random(depth.into()), Vec::new(), vec![0; size]);
        let mut paths: Vec<PathBuf> = Vec::new();
        for layer in 0..depth {
            let path = directory.join(format!("{layer}"));
            let (file, mut runs, mut at) = (File::create(&path).unwrap(), Vec::new(), random.below(9));
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
            paths.push(path);
        }
        let map = directory.join("map");
        write(&merged, paths.len(), blocks, &mut File::create(&map).unwrap()).unwrap();
        (Layers::open(&map, &paths, size as u64).unwrap(), bytes)
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
        let (map, layer) = (directory.path().join("map"), directory.path().join("0"));
        assert!(Layers::open(&map, std::slice::from_ref(&layer), 1 << 20).is_err());
        assert!(Layers::open(&map, &[layer.clone(), layer.clone()], 1 << 21).is_err());
        assert!(Layers::open(&layer, &[], 1 << 20).is_err());
    }
}
