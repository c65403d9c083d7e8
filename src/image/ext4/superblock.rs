//! Superblock, group descriptors and bitmaps (ext4: The Super Block, Block Group Descriptors, Bitmaps).

use std::io;
use std::iter::Peekable;
use std::ops::Range;

use super::alloc::Blocks;
use super::metadata::Put;
use super::{BLOCK, BLOCK_BYTES, inode};

/// The first inode that is not reserved.
pub const FIRST_INODE: u32 = 11;

const BLOCKS_PER_GROUP: u64 = 32768;
const INODES_PER_GROUP: u64 = 8192;
const TABLE_BLOCKS: u64 = INODES_PER_GROUP * inode::LEN as u64 / BLOCK;
const DESCRIPTOR: usize = 32;

// ext_attr, dir_index, sparse_super2.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
// filetype, extents, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
// large_file, huge_file, dir_nlink, extra_isize.
const READ_ONLY: u32 = 0x2 | 0x8 | 0x20 | 0x40;

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Block groups.
    pub groups: u64,
    /// The first block that is not metadata.
    pub first_data: u64,
    bitmaps: u64,
}

impl Layout {
    /// The layout of a disk of `size` bytes, if ext4 can be on it.
    pub fn new(size: u64) -> Option<Self> {
        let blocks = size / BLOCK;
        if !(16 << 20..16 << 40).contains(&size) {
            return None;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let bitmaps = 1 + (groups * DESCRIPTOR as u64).div_ceil(BLOCK);
        let first_data = bitmaps + groups * (2 + TABLE_BLOCKS);
        (first_data < blocks).then_some(Layout { blocks, groups, first_data, bitmaps })
    }

    /// Inodes of the file system.
    pub fn inodes(&self) -> u64 {
        self.groups * INODES_PER_GROUP
    }

    /// The group of an inode.
    pub fn group_of_inode(&self, number: u32) -> usize {
        (u64::from(number - 1) / INODES_PER_GROUP) as usize
    }

    /// The block of an inode, and where in it.
    pub fn inode(&self, number: u32) -> (u64, usize) {
        let byte = u64::from(number - 1) * inode::LEN as u64;
        // The tables of all groups are one.
        (self.bitmaps + 2 * self.groups + byte / BLOCK, (byte % BLOCK) as usize)
    }

    /// Whether a block is of an inode table.
    pub fn is_table(&self, block: u64) -> bool {
        (self.bitmaps + 2 * self.groups..self.first_data).contains(&block)
    }

    /// Superblock, descriptors and bitmaps; `used` are inodes in order.
    pub fn write(
        &self,
        free: &Blocks,
        used: impl Iterator<Item = u32>,
        directories: &[u16],
        put: &mut Put,
    ) -> io::Result<()> {
        let mut used = (1..FIRST_INODE).chain(used.filter(|&number| number >= FIRST_INODE)).peekable();
        let mut runs = free.runs().peekable();
        let mut descriptors = Vec::with_capacity(self.groups as usize * DESCRIPTOR);
        let (mut all_blocks, mut all_inodes) = (0, 0);
        for (group, directories) in (0..self.groups).zip(directories) {
            let places = [
                self.bitmaps + group,
                self.bitmaps + self.groups + group,
                self.bitmaps + 2 * self.groups + group * TABLE_BLOCKS,
            ];
            let (bitmap, free_blocks) = block_bitmap(group * BLOCKS_PER_GROUP, &mut runs);
            put(places[0], &bitmap)?;
            let (bitmap, free_inodes) = inode_bitmap(group * INODES_PER_GROUP + 1, &mut used);
            put(places[1], &bitmap)?;
            let mut descriptor = [0; DESCRIPTOR];
            for (at, place) in places.into_iter().enumerate() {
                descriptor[at * 4..][..4].copy_from_slice(&(place as u32).to_le_bytes());
            }
            descriptor[12..14].copy_from_slice(&(free_blocks as u16).to_le_bytes());
            descriptor[14..16].copy_from_slice(&(free_inodes as u16).to_le_bytes());
            descriptor[16..18].copy_from_slice(&directories.to_le_bytes());
            descriptors.extend(descriptor);
            all_blocks += free_blocks;
            all_inodes += free_inodes;
        }
        descriptors.resize(descriptors.len().next_multiple_of(BLOCK_BYTES), 0);
        for (index, block) in descriptors.chunks(BLOCK_BYTES).enumerate() {
            put(1 + index as u64, block)?;
        }
        put(0, &self.superblock(all_blocks, all_inodes))
    }

    fn superblock(&self, free_blocks: u64, free_inodes: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        let superblock = &mut block[1024..2048];
        let mut put = |at: usize, field: &[u8]| superblock[at..at + field.len()].copy_from_slice(field);
        let words: [(usize, u32); 19] = [
            (0x0, self.inodes() as u32),
            (0x4, self.blocks as u32),
            (0xc, free_blocks as u32),
            (0x10, free_inodes as u32),
            (0x18, 2), // block size: 1024 << 2
            (0x1c, 2), // cluster size
            (0x20, BLOCKS_PER_GROUP as u32),
            (0x24, BLOCKS_PER_GROUP as u32), // clusters
            (0x28, INODES_PER_GROUP as u32),
            (0x4c, 1), // revision
            (0x54, FIRST_INODE),
            (0x5c, COMPATIBLE),
            (0x60, INCOMPATIBLE),
            (0x64, READ_ONLY),
            (0xec, 0x6d6d_7672), // seed of the hash of directories, never zero
            (0xf0, 1),
            (0xf4, 1),
            (0xf8, 1),
            (0x100, 0x000c), // mount options: xattrs of users, ACLs
        ];
        words.iter().for_each(|(at, word)| put(*at, &word.to_le_bytes()));
        let halves: [(usize, u16); 7] = [
            (0x36, u16::MAX), // no check after a number of mounts
            (0x38, 0xef53),   // magic
            (0x3a, 1),        // clean
            (0x3c, 1),        // errors: go on
            (0x58, inode::LEN as u16),
            (0x15c, inode::EXTRA),
            (0x15e, inode::EXTRA),
        ];
        halves.iter().for_each(|(at, half)| put(*at, &half.to_le_bytes()));
        put(0xfc, &[1]); // half MD4
        put(0x174, &[4]); // groups of a flexible group: 1 << 4
        put(0x160, &1u32.to_le_bytes()); // directory hashes are of signed characters
        put(0x68, b"rvmm ext4 image\0"); // UUID: layers are the same everywhere
        put(0x78, b"rvmm\0");
        block
    }
}

/// The bitmap of a group's blocks from `start` on, of which `free` are free, and how many those are.
fn block_bitmap(start: u64, free: &mut Peekable<impl Iterator<Item = Range<u64>>>) -> (Vec<u8>, u64) {
    let (mut bitmap, mut count) = (vec![0xff; BLOCK_BYTES], 0);
    let end = start + BLOCKS_PER_GROUP;
    while let Some(run) = free.peek().filter(|run| run.start < end) {
        let (low, high) = (run.start.max(start) - start, run.end.min(end) - start);
        count += high - low;
        let (low, high) = (low as usize, high as usize);
        let whole = low.next_multiple_of(8).min(high)..(high / 8 * 8).max(low);
        if whole.start < whole.end {
            bitmap[whole.start / 8..whole.end / 8].fill(0);
        }
        for bit in (low..whole.start).chain(whole.end.max(whole.start)..high) {
            bitmap[bit / 8] &= !(1 << (bit % 8));
        }
        if run.end > end {
            break;
        }
        free.next();
    }
    (bitmap, count)
}

/// The bitmap of a group's inodes from `first` on, and how many are free.
fn inode_bitmap(first: u64, used: &mut Peekable<impl Iterator<Item = u32>>) -> (Vec<u8>, u64) {
    let mut bitmap = vec![0xff; BLOCK_BYTES];
    bitmap[..INODES_PER_GROUP as usize / 8].fill(0);
    let mut free = INODES_PER_GROUP;
    while let Some(number) = used.next_if(|&number| u64::from(number) < first + INODES_PER_GROUP) {
        let bit = (u64::from(number) - first) as usize;
        bitmap[bit / 8] |= 1 << (bit % 8);
        free -= 1;
    }
    (bitmap, free)
}
