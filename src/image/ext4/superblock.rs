//! Superblock, group descriptors and bitmaps (ext4: The Super Block, Block Group Descriptors, Bitmaps).

use std::collections::BTreeMap;

use super::alloc::Blocks;
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

    /// Writes superblock, descriptors and bitmaps.
    pub fn write(
        &self,
        free: &Blocks,
        used: impl Fn(u32) -> bool,
        directories: &[u16],
        to: &mut BTreeMap<u64, Vec<u8>>,
    ) {
        let groups = self.groups as usize;
        let mut block_bitmaps = vec![vec![0xff; BLOCK_BYTES]; groups];
        let mut free_blocks = vec![0u64; groups];
        for run in free.runs() {
            for block in run {
                let (group, bit) = ((block / BLOCKS_PER_GROUP) as usize, (block % BLOCKS_PER_GROUP) as usize);
                block_bitmaps[group][bit / 8] &= !(1 << (bit % 8));
                free_blocks[group] += 1;
            }
        }
        let mut descriptors = vec![0; groups * DESCRIPTOR];
        let mut free_inodes_total = 0;
        for (group, block_bitmap) in block_bitmaps.into_iter().enumerate() {
            let index = group as u64;
            let mut inode_bitmap = vec![0xff; BLOCK_BYTES];
            let mut free_inodes = 0u64;
            for bit in 0..INODES_PER_GROUP {
                if !used((index * INODES_PER_GROUP + bit + 1) as u32) {
                    inode_bitmap[bit as usize / 8] &= !(1 << (bit % 8));
                    free_inodes += 1;
                }
            }
            free_inodes_total += free_inodes;
            let places = [
                self.bitmaps + index,
                self.bitmaps + self.groups + index,
                self.bitmaps + 2 * self.groups + index * TABLE_BLOCKS,
            ];
            let descriptor = &mut descriptors[group * DESCRIPTOR..][..DESCRIPTOR];
            for (at, place) in places.into_iter().enumerate() {
                descriptor[at * 4..][..4].copy_from_slice(&(place as u32).to_le_bytes());
            }
            descriptor[12..14].copy_from_slice(&(free_blocks[group] as u16).to_le_bytes());
            descriptor[14..16].copy_from_slice(&(free_inodes as u16).to_le_bytes());
            descriptor[16..18].copy_from_slice(&directories[group].to_le_bytes());
            to.insert(places[0], block_bitmap);
            to.insert(places[1], inode_bitmap);
        }
        descriptors.resize(descriptors.len().next_multiple_of(BLOCK_BYTES), 0);
        for (index, block) in descriptors.chunks(BLOCK_BYTES).enumerate() {
            to.insert(1 + index as u64, block.to_vec());
        }
        to.insert(0, self.superblock(free_blocks.iter().sum(), free_inodes_total));
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
