//! What a superblock says, as far as files are read by it (ext4: The Super Block, Block Group Descriptors).

use std::io;

use super::read::{damaged, half, word};
use crate::image::view::ReadAt;

/// filetype, recover, extents, 64bit, flex_bg, ea_inode, csum_seed, largedir.
const KNOWN: u32 = 0x2 | RECOVER | EXTENTS | IS_64BIT | 0x200 | 0x400 | 0x2000 | 0x4000;
const RECOVER: u32 = 0x4;
const EXTENTS: u32 = 0x40;
const IS_64BIT: u32 = 0x80;

/// Where things are in a file system.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes of a block.
    pub block: u64,
    /// Blocks of the file system.
    pub blocks: u64,
    /// Inodes of the file system.
    pub inodes: u32,
    /// Bytes of an inode.
    pub inode_len: u64,
    /// The inode of the journal, which must be replayed before anything is believed.
    pub journal: Option<u32>,
    inodes_per_group: u32,
    descriptor: u64,
    first: u64,
}

impl Geometry {
    /// Reads the superblock; `None` if there is no file system that can be read here.
    pub fn read(disk: &mut impl ReadAt) -> io::Result<Option<Self>> {
        let mut superblock = [0; 1024];
        disk.read_at(1024, &mut superblock)?;
        let features = word(&superblock, 0x60);
        if half(&superblock, 0x38) != 0xef53 || features & !KNOWN != 0 || features & EXTENTS == 0 {
            return Ok(None);
        }
        let is_64bit = features & IS_64BIT != 0;
        let high = if is_64bit { u64::from(word(&superblock, 0x150)) } else { 0 };
        let log = word(&superblock, 0x18);
        let geometry = Geometry {
            block: 1024 << log.min(6),
            blocks: high << 32 | u64::from(word(&superblock, 0x4)),
            inodes: word(&superblock, 0x0),
            inode_len: u64::from(half(&superblock, 0x58)),
            journal: (features & RECOVER != 0).then_some(word(&superblock, 0xe0)),
            inodes_per_group: word(&superblock, 0x28),
            descriptor: if is_64bit { u64::from(half(&superblock, 0xfe)) } else { 32 },
            first: u64::from(word(&superblock, 0x14)),
        };
        let sizes = (128..=4096).contains(&geometry.inode_len) && (32..=1024).contains(&geometry.descriptor);
        if log > 6 || geometry.inodes_per_group == 0 || !sizes || geometry.blocks >> 48 != 0 {
            return Err(damaged("its superblock says what cannot be"));
        }
        Ok(Some(geometry))
    }

    /// Where an inode is, in bytes of the disk.
    pub fn inode(&self, number: u32, disk: &mut impl ReadAt) -> io::Result<u64> {
        if number == 0 || number > self.inodes {
            return Err(damaged("an entry names an inode that is not there"));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let mut bytes = [0; 64];
        let place = (self.first + 1) * self.block + u64::from(group) * self.descriptor;
        self.check(place / self.block)?;
        disk.read_at(place, &mut bytes)?;
        let high = if self.descriptor >= 64 { u64::from(word(&bytes, 0x28)) } else { 0 };
        let table = high << 32 | u64::from(word(&bytes, 0x8));
        self.check(table)?;
        Ok(table * self.block + u64::from(index) * self.inode_len)
    }

    /// Refuses blocks that are not there.
    pub fn check(&self, block: u64) -> io::Result<()> {
        if block < self.blocks { Ok(()) } else { Err(damaged("a block is behind its end")) }
    }
}
