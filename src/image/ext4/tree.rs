//! Names and inodes in memory, changed entry by entry (ext4: Directory Entries, Linear Directories).

use std::collections::BTreeMap;
use std::ops::Range;

use super::inode::{Attributes, Kind, MOST_LINKS, SHORT_LINK};
use super::{BLOCK_BYTES, Error, FileSystem, LONGEST_NAME, xattr};

const ROOT: u32 = 2;

/// The longest path (PATH_MAX).
const LONGEST_PATH: usize = 4096;

/// The most symbolic links on the way to an entry.
const MOST_SYMLINKS: usize = 40;

/// The most bytes of memory for names, links and attributes: those of two million files and more.
const MOST_HELD: usize = 1 << 30;

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
    pub(super) parent: u32,
    children: Children,
    /// The layer that has all that is below: what others had there is hidden, or never was.
    only: u32,
}

/// Entries of a directory by name, and in the order in which they came: what is added changes the last block alone.
#[derive(Default)]
struct Children {
    by_name: BTreeMap<Vec<u8>, Child>,
    order: BTreeMap<u64, Vec<u8>>,
}

struct Child {
    number: u32,
    /// The layer that the entry came with.
    layer: u32,
    place: u64,
}

impl Node {
    fn new(kind: Kind, attributes: Attributes, parent: u32, layer: u32) -> Self {
        let links = if kind == Kind::Directory { 2 } else { 1 };
        let children = Children::default();
        let (runs, leaves) = (Vec::new(), Vec::new());
        Node {
            kind,
            attributes,
            links,
            size: 0,
            runs,
            leaves,
            xattr_block: None,
            parent,
            children,
            only: layer,
        }
    }

    /// Names and inodes of a directory, in the order in which they came.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let Children { by_name, order } = &self.children;
        order.values().filter_map(|name| Some((name.as_slice(), by_name.get(name)?.number)))
    }

    /// About how much memory it takes.
    fn weight(&self) -> usize {
        let target = if let Kind::Symlink(target) = &self.kind { target.len() } else { 0 };
        size_of::<Node>() + target + self.attributes.weight()
    }
}

/// About how much memory an entry of a directory takes.
fn weight(name: &[u8]) -> usize {
    2 * (name.len() + size_of::<Child>() + size_of::<Vec<u8>>())
}

pub(super) fn refused(path: &[u8], reason: &'static str) -> Error {
    Error::Entry { path: String::from_utf8_lossy(path).into_owned(), reason }
}

impl FileSystem {
    /// Makes the root.
    pub(super) fn plant(&mut self) {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        self.nodes.insert(ROOT, Node::new(Kind::Directory, attributes, ROOT, self.layer));
    }

    /// Puts an entry at `path`, in place of what is there; directories that are missing on the way are made. A directory
    /// at the place of a directory keeps what is in it.
    ///
    /// # Errors
    /// When the file system is full, or the entry cannot be in it.
    pub fn put(&mut self, path: &[u8], kind: Kind, mut attributes: Attributes) -> Result<Id, Error> {
        if let Kind::Symlink(target) = &kind
            && (target.is_empty() || target.len() >= BLOCK_BYTES || target.contains(&0))
        {
            return Err(refused(path, "has a target that is empty or too long"));
        }
        attributes.xattrs.retain(|name, _| xattr::split(name).is_some());
        if !xattr::fits(&attributes.xattrs) {
            return Err(refused(
                path,
                "has more extended attributes than fit in a block, or an ACL that is none",
            ));
        }
        let Some((parent, name)) = self.place(path)? else {
            if kind != Kind::Directory {
                return Err(refused(path, "would take the place of the root"));
            }
            self.describe(ROOT, attributes)?;
            return Ok(Id(ROOT));
        };
        if let Some(old) = self.child(parent, &name) {
            let is_directory = |kind: &Kind| *kind == Kind::Directory;
            if is_directory(&kind) && self.nodes.get(&old).is_some_and(|node| is_directory(&node.kind)) {
                self.describe(old, attributes)?;
                self.mark(parent, &name, old)?;
                return Ok(Id(old));
            }
            self.remove_all(vec![(parent, name.clone())], false);
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
        let node = Node::new(kind, attributes, parent, self.layer);
        self.hold(node.weight())?;
        self.nodes.insert(number, node);
        self.mark(parent, name, number)?;
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
        if self.nodes.get(&found).is_none_or(|node| node.kind == Kind::Directory || node.links >= MOST_LINKS)
        {
            return Err(refused(path, "is a link to a directory, or one too many"));
        }
        let (parent, name) = self.place(path)?.ok_or_else(missing)?;
        match self.child(parent, &name) {
            Some(old) if old == found => return Ok(()),
            Some(_) => self.remove_all(vec![(parent, name.clone())], false),
            None => {}
        }
        self.mark(parent, &name, found)?;
        self.count_link(found);
        Ok(())
    }

    /// Removes what layers before this one have put at `path` and below (a whiteout), wherever in this layer it stands.
    ///
    /// # Errors
    /// When the path cannot be one.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Error> {
        if let Some(entry) = self.place(path)? {
            self.remove_all(vec![entry], true);
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
        let older = self.entries_in(directory, true);
        self.remove_all(older, true);
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
        if rest.iter().any(|part| part == b"..") {
            return Err(refused(path, "leads out of the image"));
        }
        let (mut directory, mut links) = (ROOT, 0);
        while let Some(part) = rest.pop() {
            // Of the path, or of a link on the way.
            if part.len() > LONGEST_NAME || part.contains(&0) {
                return Err(refused(path, "has a part that is no name, or goes through a link with one"));
            }
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
                    if links > MOST_SYMLINKS {
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
        Some(self.nodes.get(&directory)?.children.by_name.get(name)?.number)
    }

    fn is_older(&self, directory: u32, name: &[u8]) -> bool {
        let entry = self.nodes.get(&directory).and_then(|node| node.children.by_name.get(name));
        entry.is_some_and(|child| child.layer < self.layer)
    }

    /// Makes or refreshes an entry of this layer.
    fn mark(&mut self, directory: u32, name: &[u8], number: u32) -> Result<(), Error> {
        let layer = self.layer;
        if self.child(directory, name).is_none() {
            self.hold(weight(name))?;
        }
        let Some(node) = self.nodes.get_mut(&directory) else { return Ok(()) };
        let Children { by_name, order } = &mut node.children;
        if let Some(child) = by_name.get_mut(name) {
            *child = Child { number, layer, ..*child };
            return Ok(());
        }
        let place = order.last_key_value().map_or(0, |(last, _)| last + 1);
        order.insert(place, name.to_vec());
        by_name.insert(name.to_vec(), Child { number, layer, place });
        Ok(())
    }

    /// Counts memory: small archives can have very many names, links and attributes.
    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        if self.held + bytes > MOST_HELD {
            return Err(Error::Crowded);
        }
        self.held += bytes;
        Ok(())
    }

    fn count_link(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.links += 1;
        }
    }

    fn describe(&mut self, number: u32, attributes: Attributes) -> Result<(), Error> {
        self.hold(attributes.weight())?;
        if let Some(node) = self.nodes.get_mut(&number) {
            let old = std::mem::replace(&mut node.attributes, attributes);
            self.held -= old.weight();
        }
        Ok(())
    }

    /// The entries of a directory; of those to look for older ones in, none where there are no older ones.
    fn entries_in(&mut self, number: u32, older: bool) -> Vec<(u32, Vec<u8>)> {
        let layer = self.layer;
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.kind == Kind::Directory) else {
            return Vec::new();
        };
        if older && std::mem::replace(&mut node.only, layer) == layer {
            return Vec::new();
        }
        node.children.order.values().map(|name| (number, name.clone())).collect()
    }

    /// Removes entries with all that no other entry leads to. With `older`, those alone that layers before this one have
    /// put, and directories among them only if nothing of this layer is in them.
    fn remove_all(&mut self, mut doomed: Vec<(u32, Vec<u8>)>, older: bool) {
        // What is in a directory comes after it here, and goes before it.
        let mut next = 0;
        while let Some((directory, name)) = doomed.get(next) {
            if let Some(number) = self.child(*directory, name) {
                doomed.extend(self.entries_in(number, older));
            }
            next += 1;
        }
        for (directory, name) in doomed.iter().rev() {
            let node = self.child(*directory, name).and_then(|number| self.nodes.get(&number));
            let is_used = node.is_some_and(|node| !node.children.by_name.is_empty());
            if !older || self.is_older(*directory, name) && !is_used {
                self.unlink(*directory, name);
            }
        }
    }

    fn unlink(&mut self, directory: u32, name: &[u8]) {
        let Some(parent) = self.nodes.get_mut(&directory) else { return };
        let Some(child) = parent.children.by_name.remove(name) else { return };
        parent.children.order.remove(&child.place);
        self.held -= weight(name);
        let Some(node) = self.nodes.get_mut(&child.number) else { return };
        node.links -= 1;
        if node.kind == Kind::Directory {
            // Its entry `..` goes as well.
            self.nodes.entry(directory).and_modify(|parent| parent.links -= 1);
        } else if node.links > 0 {
            return;
        }
        self.free(child.number);
    }

    fn free(&mut self, number: u32) {
        if let Some(node) = self.nodes.remove(&number) {
            self.held -= node.weight();
            let single = node.leaves.into_iter().chain(node.xattr_block).map(|block| block..block + 1);
            node.runs.into_iter().chain(single).for_each(|run| self.release(run));
            self.free_inodes.insert(number);
        }
    }
}
