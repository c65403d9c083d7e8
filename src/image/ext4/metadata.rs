//! What is no file's content, block by block: made anew after each layer, written where it differs from before.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::inode::{self, Kind, MOST_EXTENTS};
use super::tree::{Node, refused};
use super::{BLOCK, BLOCK_BYTES, Error, FileSystem, xattr};
use crate::disk::State;

/// Takes blocks of metadata, each once.
pub type Put<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

impl FileSystem {
    /// Ends a layer: writes the metadata and returns what changed since the last one, in bytes.
    ///
    /// # Errors
    /// When the disk is full, or the host refuses.
    pub fn end_layer(&mut self) -> Result<Vec<(Range<u64>, State)>, Error> {
        self.layer += 1;
        self.grow_metadata()?;
        let mut changed = std::mem::take(&mut self.data);
        let before = std::mem::take(&mut self.written);
        let (mut now, mut touched) = (BTreeMap::new(), Vec::new());
        let zeroes = blake3::hash(&[0; BLOCK_BYTES]);
        let mut put = |block: u64, bytes: &[u8]| {
            let digest = blake3::hash(bytes);
            if digest != *before.get(&block).unwrap_or(&zeroes) || changed.contains(&block) {
                self.raw.write_all_at(bytes, block * BLOCK)?;
                touched.push(block);
            }
            if digest != zeroes {
                now.insert(block, digest);
            }
            Ok(())
        };
        self.metadata(&mut put)?;
        // Tables that have lost their last inode.
        for &block in before.keys().filter(|block| self.layout.is_table(**block)) {
            if !now.contains_key(&block) {
                self.raw.write_all_at(&[0; BLOCK_BYTES], block * BLOCK)?;
                touched.push(block);
            }
        }
        changed.extend(touched);
        self.written = now;
        let mut ranges: Vec<(Range<u64>, State)> = Vec::new();
        for block in changed {
            match ranges.last_mut() {
                Some((range, _)) if range.end == block * BLOCK => range.end += BLOCK,
                _ => ranges.push((block * BLOCK..(block + 1) * BLOCK, State::Data)),
            }
        }
        Ok(ranges)
    }

    /// Every block that is not data, as it is now; inode tables as far as there are inodes.
    fn metadata(&self, put: &mut Put) -> io::Result<()> {
        let mut directories = vec![0; self.layout.groups as usize];
        let mut table: Option<(u64, Vec<u8>)> = None;
        for (&number, node) in &self.nodes {
            if matches!(node.kind, Kind::Directory) {
                directories[self.layout.group_of_inode(number)] += 1;
                for (block, bytes) in node.runs.iter().cloned().flatten().zip(self.directory(number, node)) {
                    put(block, &bytes)?;
                }
            }
            node.leaves(put)?;
            if let Some(block) = node.xattr_block {
                put(block, &xattr::block(&node.attributes.xattrs))?;
            }
            let (block, at) = self.layout.inode(number);
            if let Some((done, bytes)) = table.take_if(|(current, _)| *current != block) {
                put(done, &bytes)?;
            }
            let (_, bytes) = table.get_or_insert_with(|| (block, vec![0; BLOCK_BYTES]));
            bytes[at..at + inode::LEN].copy_from_slice(&node.encode());
        }
        if let Some((block, bytes)) = table {
            put(block, &bytes)?;
        }
        self.layout.write(&self.blocks, self.nodes.keys().copied(), &directories, put)
    }

    /// Gives directories, extent trees and attributes the blocks that they need now.
    fn grow_metadata(&mut self) -> Result<(), Error> {
        for number in self.nodes.keys().copied().collect::<Vec<_>>() {
            let Some(node) = self.nodes.get(&number) else { continue };
            let has: u64 = node.runs.iter().map(|run| run.end - run.start).sum();
            let needs = match node.kind {
                Kind::Directory => (self.directory(number, node).len() as u64).max(has),
                _ => has,
            };
            let mut more = self.blocks.take(needs - has).ok_or_else(|| self.full())?;
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            node.runs.append(&mut more);
            if inode::extents(&node.runs).len() > MOST_EXTENTS {
                return Err(refused(format!("inode {number}").as_bytes(), "is in too many pieces"));
            }
            let leaves = inode::leaf_count(&node.runs);
            let xattrs = node.needs_xattr_block();
            while self.nodes.get(&number).is_some_and(|node| node.leaves.len() < leaves) {
                let block = self.blocks.take(1).and_then(|runs| Some(runs.first()?.start));
                let block = block.ok_or_else(|| self.full())?;
                self.nodes.entry(number).and_modify(|node| node.leaves.push(block));
            }
            let had = self.nodes.get(&number).and_then(|node| node.xattr_block);
            let block = match (xattrs, had) {
                (true, None) => {
                    let block = self.blocks.take(1).and_then(|runs| Some(runs.first()?.start));
                    Some(block.ok_or_else(|| self.full())?)
                }
                (false, Some(block)) => {
                    self.release(block..block + 1);
                    None
                }
                (_, same) => same,
            };
            self.nodes.entry(number).and_modify(|node| node.xattr_block = block);
        }
        Ok(())
    }

    /// The blocks of a directory.
    fn directory(&self, number: u32, node: &Node) -> Vec<Vec<u8>> {
        let has: u64 = node.runs.iter().map(|run| run.end - run.start).sum();
        let dots = [(&b"."[..], number), (&b".."[..], node.parent)];
        let mut blocks: Vec<Vec<u8>> = vec![Vec::new()];
        let mut last = vec![0];
        for (name, number) in dots.into_iter().chain(node.entries()) {
            let len = 8 + name.len().next_multiple_of(4);
            if blocks.last().is_none_or(|block| block.len() + len > BLOCK_BYTES) {
                blocks.push(Vec::new());
                last.push(0);
            }
            let (Some(block), Some(last)) = (blocks.last_mut(), last.last_mut()) else { continue };
            *last = block.len();
            let kind = self.nodes.get(&number).map_or(0, |node| node.kind.file_type());
            block.extend(number.to_le_bytes());
            block.extend((len as u16).to_le_bytes());
            block.extend([name.len() as u8, kind]);
            block.extend(name);
            block.resize(*last + len, 0);
        }
        // Blocks that a directory had once stay, empty.
        while (blocks.len() as u64) < has {
            blocks.push(Vec::new());
            last.push(0);
        }
        // The last entry of a block has the rest of it.
        for (block, last) in blocks.iter_mut().zip(last) {
            block.resize(BLOCK_BYTES, 0);
            block[last + 4..last + 6].copy_from_slice(&((BLOCK_BYTES - last) as u16).to_le_bytes());
        }
        blocks
    }
}
