//! Names and inodes in memory, changed entry by entry (ext4: Directory Entries, Linear Directories).

use std::collections::BTreeMap;
use std::ops::Range;

use super::inode::{self, Attributes, Kind, MOST_EXTENTS, SHORT_LINK};
use super::{BLOCK_BYTES, Error, FileSystem, LONGEST_NAME, xattr};

const ROOT: u32 = 2;

/// The longest path (PATH_MAX).
const LONGEST_PATH: usize = 4096;

/// The most symbolic links on the way to an entry.
const MOST_LINKS: usize = 40;

/// An inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub(super) u32);

/// An inode in memory.
pub struct Node {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    pub(super) links: u32,
    /// Bytes of a regular file.
    pub(super) size: u64,
    pub(super) runs: Vec<Range<u64>>,
    pub(super) leaves: Vec<u64>,
    pub(super) xattr_block: Option<u64>,
    parent: u32,
    children: Children,
}

/// Entries of a directory in the order in which they came: what is added changes the last block alone.
#[derive(Default)]
struct Children {
    order: Vec<Vec<u8>>,
    /// Inode, and the layer that the entry came with.
    by_name: BTreeMap<Vec<u8>, (u32, u32)>,
}

impl Node {
    fn new(kind: Kind, attributes: Attributes, parent: u32) -> Self {
        let links = if kind == Kind::Directory { 2 } else { 1 };
        let children = Children::default();
        let (runs, leaves) = (Vec::new(), Vec::new());
        Node { kind, attributes, links, size: 0, runs, leaves, xattr_block: None, parent, children }
    }
}

fn refused(path: &[u8], reason: &'static str) -> Error {
    Error::Entry { path: String::from_utf8_lossy(path).into_owned(), reason }
}

impl FileSystem {
    /// Makes the root.
    pub(super) fn plant(&mut self) {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        self.nodes.insert(ROOT, Node::new(Kind::Directory, attributes, ROOT));
    }

    /// Puts an entry at `path`, in place of what is there; directories that are missing on the way are made. A directory
    /// at the place of a directory keeps what is in it.
    ///
    /// # Errors
    /// When the file system is full, or the entry cannot be in it.
    pub fn put(&mut self, path: &[u8], kind: Kind, attributes: Attributes) -> Result<Id, Error> {
        if let Kind::Symlink(target) = &kind
            && (target.is_empty() || target.len() >= BLOCK_BYTES || target.contains(&0))
        {
            return Err(refused(path, "has a target that is empty or too long"));
        }
        if !xattr::fits(&attributes.xattrs) {
            return Err(refused(path, "has more extended attributes than fit in a block"));
        }
        let Some((parent, name)) = self.place(path)? else {
            if kind != Kind::Directory {
                return Err(refused(path, "would take the place of the root"));
            }
            self.describe(ROOT, attributes);
            return Ok(Id(ROOT));
        };
        if let Some(old) = self.child(parent, &name) {
            let is_directory = |kind: &Kind| *kind == Kind::Directory;
            if is_directory(&kind) && self.nodes.get(&old).is_some_and(|node| is_directory(&node.kind)) {
                self.describe(old, attributes);
                self.mark(parent, &name, old);
                return Ok(Id(old));
            }
            self.remove_entry(parent, &name);
        }
        self.create(parent, &name, kind, attributes)
    }

    /// Makes a new entry in a directory that has none of this name.
    fn create(&mut self, parent: u32, name: &[u8], kind: Kind, attributes: Attributes) -> Result<Id, Error> {
        let number = self.free_inodes.pop_first().unwrap_or(self.next_inode);
        if u64::from(number) > self.layout.inodes() {
            return Err(self.full());
        }
        self.next_inode = self.next_inode.max(number + 1);
        let long = match &kind {
            Kind::Symlink(target) if target.len() > SHORT_LINK => Some(target.clone()),
            _ => None,
        };
        if kind == Kind::Directory {
            self.count_link(parent);
        }
        self.nodes.insert(number, Node::new(kind, attributes, parent));
        self.mark(parent, name, number);
        if let Some(target) = long {
            self.fill(Id(number), target.len() as u64, &mut target.as_slice())?;
        }
        Ok(Id(number))
    }

    /// Gives the file at `target` another name.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let found = match self.place(target)? {
            Some((parent, name)) => self.child(parent, &name),
            None => None,
        };
        let missing = || refused(path, "is a link to what is not there");
        let found = found.ok_or_else(missing)?;
        if self.nodes.get(&found).is_none_or(|node| node.kind == Kind::Directory || node.links >= 65_000) {
            return Err(refused(path, "is a link to a directory, or one too many"));
        }
        let (parent, name) = self.place(path)?.ok_or_else(missing)?;
        match self.child(parent, &name) {
            Some(old) if old == found => return Ok(()),
            Some(_) => self.remove_entry(parent, &name),
            None => {}
        }
        self.count_link(found);
        self.mark(parent, &name, found);
        Ok(())
    }

    /// Removes what layers before this one have put at `path` (a whiteout).
    ///
    /// # Errors
    /// When the path cannot be one.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Error> {
        if let Some((parent, name)) = self.place(path)?
            && self.is_older(parent, &name)
        {
            self.remove_entry(parent, &name);
        }
        Ok(())
    }

    /// Removes what layers before this one have put into the directory at `path` (an opaque whiteout).
    ///
    /// # Errors
    /// When the path cannot be one.
    pub fn clear(&mut self, path: &[u8]) -> Result<(), Error> {
        let directory = match self.place(path)? {
            Some((parent, name)) => self.child(parent, &name).unwrap_or(0),
            None => ROOT,
        };
        let names = self.nodes.get(&directory).map(|node| node.children.order.clone()).unwrap_or_default();
        names.iter().for_each(|name| {
            if self.is_older(directory, name) {
                self.remove_entry(directory, name);
            }
        });
        Ok(())
    }

    /// The directory and name that `path` means, with links on the way followed inside of the file system; `None`
    /// for the root.
    fn place(&mut self, path: &[u8]) -> Result<Option<(u32, Vec<u8>)>, Error> {
        if path.len() > LONGEST_PATH {
            return Err(refused(&path[..80], "goes on for too long"));
        }
        if path.first() == Some(&b'/') {
            return Err(refused(path, "is an absolute path"));
        }
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|&c| c == b'/')
                .filter(|part| !matches!(part, [] | [b'.']))
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        // What is still to go, the next part last.
        let mut rest = parts(path);
        let bad = |part: &Vec<u8>| part.len() > LONGEST_NAME || part.contains(&0) || part == b"..";
        if rest.iter().any(bad) {
            return Err(refused(path, "leads out of the image, or has a part that is no name"));
        }
        let (mut directory, mut links) = (ROOT, 0);
        while let Some(part) = rest.pop() {
            if part == b".." {
                directory = self.nodes.get(&directory).map_or(ROOT, |node| node.parent);
                continue;
            }
            if rest.is_empty() {
                return Ok(Some((directory, part)));
            }
            let next =
                self.child(directory, &part).and_then(|next| Some((next, &self.nodes.get(&next)?.kind)));
            match next {
                Some((next, Kind::Directory)) => directory = next,
                Some((_, Kind::Symlink(target))) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(refused(path, "goes through too many symbolic links"));
                    }
                    if target.first() == Some(&b'/') {
                        directory = ROOT;
                    }
                    let more = parts(target);
                    rest.extend(more);
                }
                Some(_) => return Err(refused(path, "goes through what is no directory")),
                None => {
                    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                    directory = self.create(directory, &part, Kind::Directory, attributes)?.0;
                }
            }
        }
        Ok(None)
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        Some(self.nodes.get(&directory)?.children.by_name.get(name)?.0)
    }

    fn is_older(&self, directory: u32, name: &[u8]) -> bool {
        let entry = self.nodes.get(&directory).and_then(|node| node.children.by_name.get(name));
        entry.is_some_and(|(_, layer)| *layer < self.layer)
    }

    /// Makes or refreshes an entry of this layer.
    fn mark(&mut self, directory: u32, name: &[u8], number: u32) {
        let layer = self.layer;
        if let Some(node) = self.nodes.get_mut(&directory)
            && node.children.by_name.insert(name.to_vec(), (number, layer)).is_none()
        {
            node.children.order.push(name.to_vec());
        }
    }

    fn count_link(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.links += 1;
        }
    }

    fn describe(&mut self, number: u32, attributes: Attributes) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.attributes = attributes;
        }
    }

    /// Removes an entry, and all that no other entry leads to.
    fn remove_entry(&mut self, directory: u32, name: &[u8]) {
        // What is in a directory comes after it here, and goes before it.
        let mut doomed = vec![(directory, name.to_vec())];
        let mut next = 0;
        while let Some((directory, name)) = doomed.get(next) {
            if let Some(number) = self.child(*directory, name)
                && let Some(node) = self.nodes.get(&number).filter(|node| node.kind == Kind::Directory)
            {
                doomed.extend(node.children.order.iter().map(|name| (number, name.clone())));
            }
            next += 1;
        }
        for (directory, name) in doomed.iter().rev() {
            self.unlink(*directory, name);
        }
        if let Some(node) = self.nodes.get_mut(&directory) {
            node.children.order.retain(|other| other != name);
        }
    }

    /// Takes an entry out of its directory, but not out of the order there.
    fn unlink(&mut self, directory: u32, name: &[u8]) {
        let Some(parent) = self.nodes.get_mut(&directory) else { return };
        let Some((number, _)) = parent.children.by_name.remove(name) else { return };
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.links -= 1;
        if node.kind == Kind::Directory {
            // Its entry `..` goes as well.
            self.nodes.entry(directory).and_modify(|parent| parent.links -= 1);
        } else if node.links > 0 {
            return;
        }
        self.free(number);
    }

    fn free(&mut self, number: u32) {
        if let Some(node) = self.nodes.remove(&number) {
            let single = node.leaves.into_iter().chain(node.xattr_block).map(|block| block..block + 1);
            node.runs.into_iter().chain(single).for_each(|run| self.release(run));
            self.free_inodes.insert(number);
        }
    }

    /// Gives directories, extent trees and attributes the blocks that they need now.
    pub(super) fn grow_metadata(&mut self) -> Result<(), Error> {
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
    pub(super) fn directory(&self, number: u32, node: &Node) -> Vec<Vec<u8>> {
        let has: u64 = node.runs.iter().map(|run| run.end - run.start).sum();
        let dots = [(&b"."[..], number), (&b".."[..], node.parent)];
        let entries = node
            .children
            .order
            .iter()
            .filter_map(|name| Some((name.as_slice(), node.children.by_name.get(name)?.0)));
        let mut blocks: Vec<Vec<u8>> = vec![Vec::new()];
        let mut last = vec![0];
        for (name, number) in dots.into_iter().chain(entries) {
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
