//! Unpacks a layer in canonical form. Layers come from anywhere: nothing in them is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::form::Form;
use super::header::{self, Header};
use super::scan::{Runs, Scan, append, blocks};
use super::*;
use crate::disk::State;
use crate::image::Error;
use crate::image::layer::write::Written;
use crate::sys;

struct Reader<'a> {
    form: Form,
    from: &'a File,
    to: &'a File,
    header: Header,
    scan: Scan,
    /// Where the next compressed cluster begins.
    compressed: u64,
    /// The parts of plain clusters that were taken.
    taken: BTreeMap<u64, u64>,
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::invalid("A disk layer", reason)
}

fn reading(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => invalid("it is too short"),
        _ => Error::Io { doing: "read", path: "a disk layer".into(), source },
    }
}

fn writing(source: io::Error) -> Error {
    Error::Io { doing: "unpack to", path: "a disk layer".into(), source }
}

/// Opens a layer: a reader, and the number and place of each L2 table.
fn open<'a>(from: &'a File, to: &'a File) -> Result<(Reader<'a>, Vec<(u64, u64)>), Error> {
    let mut bytes = [0; header::LEN];
    from.read_exact_at(&mut bytes, 0).map_err(reading)?;
    let header =
        Header::parse(&bytes).ok_or_else(|| invalid("it is not a qcow2 file in the form of layers"))?;
    let len = from.metadata().map_err(reading)?.len();
    let tables = (1 + header.form.l1_clusters(header.size)) * header.form.cluster();
    if header.refcounts > len || tables > header.refcounts {
        return Err(invalid("its tables do not fit in it"));
    }
    let mut reader = Reader {
        form: header.form,
        from,
        to,
        header,
        scan: Scan::default(),
        compressed: 0,
        taken: BTreeMap::new(),
    };
    let found = reader.tables(tables)?;
    Ok((reader, found))
}

/// Which blocks a layer has, by its tables alone: zeroes that are compressed with others are taken for data.
///
/// # Errors
/// When the layer is not in canonical form.
pub fn outline(from: &File) -> Result<Runs, Error> {
    let (reader, found) = open(from, from)?;
    let (form, mut runs, blocks) = (reader.form, Runs::new(), blocks(reader.header.size));
    for (index, place) in found {
        for (entry, descriptor, bitmap) in reader.entries(place)? {
            let first = (index * form.l2_entries() + entry) * form.blocks();
            for block in first..(first + form.blocks()).min(blocks) {
                let bits = form.parts(block - first);
                match descriptor & COMPRESSED != 0 || bitmap & bits != 0 {
                    true => append(&mut runs, block..block + 1, State::Data),
                    false if bitmap >> 32 & bits != 0 => append(&mut runs, block..block + 1, State::Zero),
                    false => {}
                }
            }
        }
    }
    Ok(runs)
}

/// Unpacks the layer in `from` to the empty file `to`, in which every data block has its place on the disk.
/// Returns the disk's size and what the layer holds.
///
/// # Errors
/// When the layer is not in canonical form, has more than `limit` bytes of data, or there is no room for it.
pub fn read(from: &File, to: &File, limit: u64) -> Result<(u64, Written), Error> {
    let (mut reader, found) = open(from, to)?;
    to.set_len(reader.header.size).map_err(writing)?;
    let bytes = found.iter().map(|(_, place)| reader.measure(*place)).sum::<Result<u64, _>>()?;
    if bytes > limit {
        return Err(Error::TooLarge { what: "A disk layer".into(), limit });
    }
    // Before the host's disk is full, not after.
    let room = sys::file::room(to).map_err(writing)?;
    if bytes > room {
        let reason = format!("it unpacks to {bytes} bytes, and there is room for {room}");
        return Err(writing(io::Error::new(io::ErrorKind::StorageFull, reason)));
    }
    for (index, place) in found {
        reader.table(index, place)?;
    }
    let size = reader.header.size;
    let (runs, diff_id) = reader.scan.end(size);
    Ok((size, Written { runs, diff_id }))
}

impl Reader<'_> {
    /// Reads the L1 table: the number and place of each L2 table.
    fn tables(&mut self, mut next: u64) -> Result<Vec<(u64, u64)>, Error> {
        let mut bytes = vec![0; (self.form.l1_entries(self.header.size) * 8) as usize];
        self.from.read_exact_at(&mut bytes, self.form.cluster()).map_err(reading)?;
        let mut found = Vec::new();
        for (index, entry) in bytes.as_chunks().0.iter().enumerate() {
            match u64::from_be_bytes(*entry) {
                0 => {}
                entry if entry == next | COPIED && next + self.form.cluster() <= self.header.refcounts => {
                    found.push((index as u64, next));
                    next += self.form.cluster();
                }
                _ => return Err(invalid("its L2 tables are not in order")),
            }
        }
        self.compressed = next;
        Ok(found)
    }

    /// The entries of an L2 table that say something: number, descriptor and bitmap.
    fn entries(&self, place: u64) -> Result<Vec<(u64, u64, u64)>, Error> {
        let mut bytes = vec![0; self.form.cluster() as usize];
        self.from.read_exact_at(&mut bytes, place).map_err(reading)?;
        Ok(self.form.entries(&bytes))
    }

    /// The most bytes that a table's clusters unpack to.
    fn measure(&self, place: u64) -> Result<u64, Error> {
        let bytes = |(_, descriptor, bitmap): &(u64, u64, u64)| match descriptor & COMPRESSED {
            0 => u64::from((*bitmap as u32).count_ones()) * BLOCK / u64::from(self.form.parts_of_block()),
            _ => self.form.cluster(),
        };
        Ok(self.entries(place)?.iter().map(bytes).sum())
    }

    fn table(&mut self, index: u64, place: u64) -> Result<(), Error> {
        let form = self.form;
        let mut cluster = vec![0; form.cluster() as usize];
        for (entry, descriptor, bitmap) in self.entries(place)? {
            let number = index * form.l2_entries() + entry;
            let count = blocks(self.header.size).saturating_sub(number * form.blocks()).min(form.blocks());
            let (data, zeroes) = if descriptor & COMPRESSED != 0 {
                self.decompress(descriptor, bitmap, &mut cluster)?;
                let all = (0..count).fold(0, |bits, block| bits | form.parts(block));
                (all, 0)
            } else {
                self.plain(descriptor, bitmap, &mut cluster)?
            };
            let mut there = Runs::new();
            for block in 0..form.blocks() {
                let bits = form.parts(block);
                let at = (block * BLOCK) as usize;
                let bytes = &cluster[at..at + BLOCK as usize];
                let state = match (data & bits, zeroes & bits) {
                    (0, 0) => continue,
                    (there, 0) if there == bits => State::Data,
                    (0, zero) if zero == bits => State::Zero,
                    _ => return Err(invalid("it has a part of a block")),
                };
                if block >= count {
                    return Err(invalid("it has blocks beyond the end of its disk"));
                }
                if self.scan.block(number * form.blocks() + block, state, bytes) == State::Data {
                    append(&mut there, block..block + 1, State::Data);
                }
            }
            for (blocks, _) in there {
                let at = (number * form.blocks() + blocks.start) * BLOCK;
                let bytes = &cluster[(blocks.start * BLOCK) as usize..(blocks.end * BLOCK) as usize];
                let len = (bytes.len() as u64).min(self.header.size - at) as usize;
                self.to.write_all_at(&bytes[..len], at).map_err(writing)?;
            }
        }
        Ok(())
    }

    /// Takes a compressed cluster, which begins where the one before ended: no byte is used twice.
    fn decompress(&mut self, descriptor: u64, bitmap: u64, cluster: &mut [u8]) -> Result<(), Error> {
        let shift = self.form.sectors_shift();
        let start = descriptor & ((1 << shift) - 1);
        let further = (descriptor & (COMPRESSED - 1)) >> shift;
        if descriptor & COPIED != 0
            || bitmap != 0
            || start != self.compressed
            || start >= self.header.refcounts
        {
            return Err(invalid("its compressed clusters are not in order"));
        }
        let stop = ((start / 512 + further + 1) * 512).min(self.header.refcounts);
        let mut small = vec![0; (stop - start) as usize];
        self.from.read_exact_at(&mut small, start).map_err(reading)?;
        let len = zstd::zstd_safe::find_frame_compressed_size(&small)
            .map_err(|_| invalid("a compressed cluster is damaged"))?;
        // The buffer has exactly one cluster: what wants to be larger is an error and not memory.
        let got = zstd::bulk::decompress_to_buffer(&small[..len], &mut *cluster);
        if got.ok() != Some(cluster.len()) || (start + len as u64 - 1) / 512 - start / 512 != further {
            return Err(invalid("a compressed cluster is damaged"));
        }
        self.compressed = start + len as u64;
        Ok(())
    }

    /// Takes a cluster that is not compressed, or that holds zeroes alone; returns the bits of both kinds of blocks.
    fn plain(&mut self, descriptor: u64, bitmap: u64, cluster: &mut [u8]) -> Result<(u64, u64), Error> {
        let (data, zeroes) = (bitmap & 0xffff_ffff, bitmap >> 32);
        let place = descriptor & !COPIED;
        if data & zeroes != 0 || (data == 0) != (descriptor == 0) {
            return Err(invalid("a cluster is there and not there"));
        }
        if data != 0 {
            if !place.is_multiple_of(self.form.cluster()) || place == 0 || place >= self.header.refcounts {
                return Err(invalid("a cluster is outside"));
            }
            // Clusters share a place, but no part of it.
            let taken = self.taken.entry(place).or_default();
            if *taken & data != 0 {
                return Err(invalid("its clusters overlap"));
            }
            *taken |= data;
            self.from.read_exact_at(cluster, place).map_err(reading)?;
        }
        Ok((data, zeroes))
    }
}
