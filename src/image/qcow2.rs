//! Whole disks as qcow2 files that everybody reads: version 2, clusters of 64 KiB as they are (docs/interop/qcow2 in QEMU).
//!
//! ```text
//! cluster 0  header
//!            L1 table; L2 tables of what has data; data, in the order of the disk
//!            refcount table; refcount blocks
//! ```
//!
//! Layers have another form, which is smaller and for which QEMU 5.2 is needed. `--disk` and older programs read this one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layer::BLOCK;
use super::view::{ReadAt, View};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Entries of an L2 table, and of a refcount block.
const L2_ENTRIES: u64 = CLUSTER / 8;
const REFCOUNTS: u64 = CLUSTER / 2;

/// Bit 63 of L1 and L2 entries: nothing else uses the cluster.
const COPIED: u64 = 1 << 63;

/// Where the parts of a file are, in clusters.
struct Plan {
    size: u64,
    l1: u64,
    /// The clusters of the disk that have data, in order.
    data: Vec<u64>,
    /// The parts of the disk that have L2 tables.
    tables: Vec<u64>,
    refcount_tables: u64,
    refcounts: u64,
}

impl Plan {
    fn new(view: &mut View) -> io::Result<Self> {
        let (size, mut data) = (view.size(), Vec::new());
        for run in view.data()? {
            data.extend(run.start * BLOCK / CLUSTER..(run.end() * BLOCK).min(size).div_ceil(CLUSTER));
        }
        data.dedup();
        let mut tables: Vec<u64> = data.iter().map(|cluster| cluster / L2_ENTRIES).collect();
        tables.dedup();
        let l1 = (size.div_ceil(CLUSTER * L2_ENTRIES) * 8).div_ceil(CLUSTER);
        let mut plan = Plan { size, l1, data, tables, refcount_tables: 1, refcounts: 1 };
        // They count themselves.
        while plan.refcounts * REFCOUNTS < plan.end() {
            plan.refcounts = plan.end().div_ceil(REFCOUNTS);
            plan.refcount_tables = (plan.refcounts * 8).div_ceil(CLUSTER);
        }
        Ok(plan)
    }

    fn first_table(&self) -> u64 {
        1 + self.l1
    }

    fn first_data(&self) -> u64 {
        self.first_table() + self.tables.len() as u64
    }

    fn first_refcount_table(&self) -> u64 {
        self.first_data() + self.data.len() as u64
    }

    fn first_refcounts(&self) -> u64 {
        self.first_refcount_table() + self.refcount_tables
    }

    fn end(&self) -> u64 {
        self.first_refcounts() + self.refcounts
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0x5146_49fb, 2, 0, 0, 0, CLUSTER_BITS] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(0u32.to_be_bytes());
        bytes.extend((self.size.div_ceil(CLUSTER * L2_ENTRIES) as u32).to_be_bytes());
        bytes.extend(CLUSTER.to_be_bytes());
        bytes.extend((self.first_refcount_table() * CLUSTER).to_be_bytes());
        bytes.extend((self.refcount_tables as u32).to_be_bytes());
        // No snapshots.
        bytes.extend([0; 12]);
        bytes
    }

    fn write_tables(&self, to: &File) -> io::Result<()> {
        to.set_len(self.end() * CLUSTER)?;
        to.write_all_at(&self.header(), 0)?;
        for (place, table) in (self.first_table()..).zip(&self.tables) {
            to.write_all_at(&((place * CLUSTER) | COPIED).to_be_bytes(), CLUSTER + table * 8)?;
        }
        let mut place = self.first_data();
        for (index, clusters) in self.data.chunk_by(|a, b| a / L2_ENTRIES == b / L2_ENTRIES).enumerate() {
            let mut table = vec![0; CLUSTER as usize];
            for cluster in clusters {
                let at = (cluster % L2_ENTRIES * 8) as usize;
                table[at..at + 8].copy_from_slice(&((place * CLUSTER) | COPIED).to_be_bytes());
                place += 1;
            }
            to.write_all_at(&table, (self.first_table() + index as u64) * CLUSTER)?;
        }
        let blocks = (0..self.refcounts).map(|index| (self.first_refcounts() + index) * CLUSTER);
        let blocks: Vec<u8> = blocks.flat_map(u64::to_be_bytes).collect();
        to.write_all_at(&blocks, self.first_refcount_table() * CLUSTER)?;
        let counts = 1u16.to_be_bytes().repeat(self.end() as usize);
        to.write_all_at(&counts, self.first_refcounts() * CLUSTER)
    }
}

/// Writes the disk to an empty file; `told` hears how many bytes of how many are there.
pub fn write(view: &mut View, to: &File, told: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
    let plan = Plan::new(view)?;
    plan.write_tables(to)?;
    let all = plan.data.len() as u64 * CLUSTER;
    let mut bytes = vec![0; CLUSTER as usize];
    for (place, cluster) in (plan.first_data()..).zip(&plan.data) {
        view.read_at(cluster * CLUSTER, &mut bytes)?;
        to.write_all_at(&bytes, place * CLUSTER)?;
        told((place + 1 - plan.first_data()) * CLUSTER, all);
    }
    Ok(())
}
