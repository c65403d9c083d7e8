//! Writes a layer in canonical form.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::form::Form;
use super::header::Header;
use super::scan::{Runs, Scan, append, blocks};
use super::*;
use crate::disk::State;
use crate::image::digest::Digest;

/// Places in the file that more parts may go to. Looking at all would take long; the number is a part of the form.
const OPEN: usize = 64;

/// A layer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What it holds.
    pub runs: Runs,
    /// Its identity.
    pub diff_id: Digest,
}

struct Writer<'a> {
    form: Form,
    from: &'a File,
    size: u64,
    to: &'a File,
    scan: Scan,
    compressor: zstd::bulk::Compressor<'static>,
    tables: BTreeMap<u64, Vec<[u64; 2]>>,
    /// Clusters that go to plain places, with the bits of their data blocks and of their zero blocks.
    plain: Vec<(u64, u64, u64)>,
    refcounts: Vec<u16>,
    /// The end of the file so far.
    end: u64,
}

/// Writes the changes of a disk of `size` bytes to the empty file `to`. Their data is in `from` at its place on the
/// disk; changes are in order and in bytes, and only their last block may be cut by the end of the disk.
///
/// # Errors
/// When the host refuses.
///
/// `told` hears how many bytes of how many were packed.
pub fn write(
    from: &File,
    size: u64,
    changes: impl IntoIterator<Item = (Range<u64>, State)>,
    to: &File,
    told: &mut dyn FnMut(u64, u64),
) -> io::Result<Written> {
    write_at(LEVEL, from, size, changes, to, told)
}

/// As [`write`], at another level of compression: what is written is no canonical layer of a disk.
///
/// # Errors
/// As there.
pub fn write_at(
    level: i32,
    from: &File,
    size: u64,
    changes: impl IntoIterator<Item = (Range<u64>, State)>,
    to: &File,
    told: &mut dyn FnMut(u64, u64),
) -> io::Result<Written> {
    let mut runs = Runs::new();
    for (bytes, state) in changes {
        append(&mut runs, bytes.start / BLOCK..bytes.end.div_ceil(BLOCK).min(blocks(size)), state);
    }
    let form = Form::of(&runs, size);
    write_form(form, level, from, size, &runs, to, told)
}

/// Writes blocks in a given form.
pub fn write_form(
    form: Form,
    level: i32,
    from: &File,
    size: u64,
    runs: &Runs,
    to: &File,
    told: &mut dyn FnMut(u64, u64),
) -> io::Result<Written> {
    let mut writer = Writer {
        form,
        from,
        size,
        to,
        scan: Scan::default(),
        compressor: zstd::bulk::Compressor::new(level)?,
        tables: BTreeMap::new(),
        plain: Vec::new(),
        refcounts: Vec::new(),
        end: 0,
    };
    writer.reserve_tables(runs);
    writer.compress(runs, told)?;
    writer.place()?;
    writer.finish()
}

impl Writer<'_> {
    /// Makes an L2 table for every part of the disk that has changes, and leaves room for all tables.
    fn reserve_tables(&mut self, runs: &Runs) {
        let entries = self.form.l2_entries();
        let of_table = self.form.blocks() * entries;
        for (run, _) in runs {
            for table in run.start / of_table..=(run.end - 1) / of_table {
                self.tables.entry(table).or_insert_with(|| vec![[0; 2]; entries as usize]);
            }
        }
        self.end = (1 + self.form.l1_clusters(self.size) + self.tables.len() as u64) * self.form.cluster();
        self.use_clusters(0, self.end);
    }

    /// Counts one more use of the clusters with these bytes.
    fn use_clusters(&mut self, start: u64, end: u64) {
        let clusters = (start / self.form.cluster()) as usize..end.div_ceil(self.form.cluster()) as usize;
        if self.refcounts.len() < clusters.end {
            self.refcounts.resize(clusters.end, 0);
        }
        self.refcounts[clusters].iter_mut().for_each(|count| *count += 1);
    }

    fn entry(&mut self, cluster: u64) -> Option<&mut [u64; 2]> {
        let entries = self.form.l2_entries();
        self.tables.get_mut(&(cluster / entries))?.get_mut((cluster % entries) as usize)
    }

    /// Goes through all clusters with changes: compresses those that are complete, remembers the others.
    fn compress(&mut self, runs: &Runs, told: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let all: u64 = runs.iter().map(|(run, _)| (run.end - run.start) * BLOCK).sum();
        let mut done = 0;
        let form = self.form;
        let mut cluster = vec![0; form.cluster() as usize];
        let mut small = vec![0; cluster.len() * 2];
        let mut runs = runs.iter().peekable();
        let mut next = 0;
        while let Some((run, state)) = runs.peek() {
            let number = (run.start / form.blocks()).max(next);
            next = number + 1;
            let here = number * form.blocks()..(next * form.blocks()).min(blocks(self.size));
            // Long zeroes need no look at each block.
            if *state == State::Zero && run.start <= here.start && here.end <= run.end {
                self.scan.zeroes(here.clone());
                let zeroes = (0..here.end - here.start).fold(0, |bits, block| bits | form.parts(block));
                if let Some(entry) = self.entry(number) {
                    *entry = [0, zeroes << 32];
                }
                if run.end <= here.end {
                    runs.next();
                }
                continue;
            }
            done += form.cluster();
            told(done.min(all), all);
            cluster.fill(0);
            let (mut data, mut zeroes) = (0, 0);
            while let Some((run, state)) = runs.peek().filter(|(run, _)| run.start < here.end) {
                let part = run.start.max(here.start)..run.end.min(here.end);
                let place = |block| ((block - here.start) * BLOCK) as usize;
                if *state == State::Data {
                    self.read(part.start, &mut cluster[place(part.start)..place(part.end)])?;
                }
                for block in part {
                    let bytes = &cluster[place(block)..place(block + 1)];
                    match self.scan.block(block, *state, bytes) {
                        State::Data => data |= form.parts(block - here.start),
                        _ => zeroes |= form.parts(block - here.start),
                    }
                }
                if run.end > here.end {
                    break;
                }
                runs.next();
            }
            let complete =
                (data | zeroes).count_ones() == form.parts_of_block() * (here.end - here.start) as u32;
            if data == 0 {
                if let Some(entry) = self.entry(number) {
                    *entry = [0, zeroes << 32];
                }
            } else if !complete || !self.put_compressed(number, &cluster, &mut small)? {
                self.plain.push((number, data, zeroes));
            }
        }
        Ok(())
    }

    /// Reads from a block on; what is beyond the end of the disk is zeroes.
    fn read(&self, block: u64, bytes: &mut [u8]) -> io::Result<()> {
        let len = bytes.len().min((self.size - block * BLOCK) as usize);
        bytes[len..].fill(0);
        read_sparse(self.from, block * BLOCK, &mut bytes[..len])
    }

    /// Writes a cluster compressed if that makes it smaller by a sector.
    fn put_compressed(&mut self, number: u64, cluster: &[u8], small: &mut [u8]) -> io::Result<bool> {
        let len = self.compressor.compress_to_buffer(cluster, small)?;
        if len + 512 > cluster.len() {
            return Ok(false);
        }
        let start = self.end;
        self.to.write_all_at(&small[..len], start)?;
        self.end += len as u64;
        let further = (self.end - 1) / 512 - start / 512;
        // A compressed cluster counts for every cluster that its sectors touch.
        self.use_clusters(start, self.end.next_multiple_of(512));
        let descriptor = COMPRESSED | further << self.form.sectors_shift() | start;
        if let Some(entry) = self.entry(number) {
            *entry = [descriptor, 0];
        }
        Ok(true)
    }

    /// Gives every other cluster the first open place whose parts are free, or a new one.
    fn place(&mut self) -> io::Result<()> {
        let form = self.form;
        self.end = self.end.next_multiple_of(form.cluster());
        let first = self.end;
        let mut open: VecDeque<(u64, u64)> = VecDeque::new();
        let mut cluster = vec![0; form.cluster() as usize];
        for (number, data, zeroes) in std::mem::take(&mut self.plain) {
            let place = match open.iter_mut().find(|(_, used)| used & data == 0) {
                Some((place, used)) => {
                    *used |= data;
                    *place
                }
                None => {
                    let place = self.end;
                    self.end += form.cluster();
                    open.push_back((place, data));
                    if open.len() > OPEN {
                        open.pop_front();
                    }
                    place
                }
            };
            self.use_clusters(place, place + form.cluster());
            let mut there = Runs::new();
            (0..form.blocks())
                .filter(|&index| data & form.parts(index) != 0)
                .for_each(|index| append(&mut there, index..index + 1, State::Data));
            for (blocks, _) in there {
                let bytes = &mut cluster[..((blocks.end - blocks.start) * BLOCK) as usize];
                self.read(number * form.blocks() + blocks.start, bytes)?;
                self.to.write_all_at(bytes, place + blocks.start * BLOCK)?;
            }
            if let Some(entry) = self.entry(number) {
                *entry = [place, zeroes << 32 | data];
            }
        }
        // Now it is known who shares.
        for entry in self.tables.values_mut().flatten() {
            let place = entry[0];
            if place >= first
                && place & COMPRESSED == 0
                && self.refcounts[(place / form.cluster()) as usize] == 1
            {
                entry[0] |= COPIED;
            }
        }
        Ok(())
    }

    /// Writes the tables and the header.
    fn finish(mut self) -> io::Result<Written> {
        let (form, cluster) = (self.form, self.form.cluster());
        let start = self.end / cluster;
        // The refcount table and blocks count themselves.
        let (mut tables, mut counts) = (1, 1);
        loop {
            let clusters = start + tables + counts;
            let needed = clusters.div_ceil(form.refcounts());
            let needed_tables = (needed * 8).div_ceil(cluster);
            if (needed_tables, needed) == (tables, counts) {
                break;
            }
            (tables, counts) = (needed_tables.max(tables), needed.max(counts));
        }
        self.use_clusters(self.end, (start + tables + counts) * cluster);
        let mut at = self.end;
        let table: Vec<u8> =
            (0..counts).flat_map(|i| ((start + tables + i) * cluster).to_be_bytes()).collect();
        self.to.write_all_at(&table, at)?;
        at += tables * cluster;
        let bytes: Vec<u8> = self.refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.to.write_all_at(&bytes, at)?;
        // What is beyond the end reads as zeroes.
        self.to.set_len((at + bytes.len() as u64).next_multiple_of(512))?;

        let mut table = cluster * (1 + form.l1_clusters(self.size));
        for (index, entries) in &self.tables {
            self.to.write_all_at(&(table | COPIED).to_be_bytes(), cluster + index * 8)?;
            self.to.write_all_at(&form.table(entries), table)?;
            table += cluster;
        }
        let header = Header { form, size: self.size, refcounts: self.end, refcount_clusters: tables as u32 };
        self.to.write_all_at(&header.bytes(), 0)?;
        let (runs, diff_id) = self.scan.end(self.size);
        Ok(Written { runs, diff_id })
    }
}
