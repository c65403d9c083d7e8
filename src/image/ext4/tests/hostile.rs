//! File systems that nobody should make.

use super::*;
use crate::testing::within;

/// A file system with a file `victim` whose inode `change` changes; it is told where the blocks of `blocks` are.
fn changed(
    blocks: usize,
    change: impl Fn(&mut [u8], &mut dyn FnMut(usize, &[u8]), u64),
) -> tempfile::NamedTempFile {
    let (mut fs, file) = new(16 << 20);
    put_file(&mut fs, "blocks", &vec![1; blocks * BLOCK_BYTES]);
    put_file(&mut fs, "victim", &[2; 10_000]);
    fs.end_layer().unwrap();
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    let root = reader.root().unwrap();
    let names = reader.entries(&root).unwrap();
    let first = reader.inode(names[&b"blocks"[..]]).unwrap().extents[0].start.unwrap();
    let (block, at) = fs.layout.inode(names[&b"victim"[..]]);
    let place = block * BLOCK + at as u64;
    let mut inode = vec![0; inode::LEN];
    file.as_file().read_exact_at(&mut inode, place).unwrap();
    let mut write = |index: usize, bytes: &[u8]| {
        file.as_file().write_all_at(bytes, (first + index as u64) * BLOCK).unwrap();
    };
    change(&mut inode, &mut write, first);
    file.as_file().write_all_at(&inode, place).unwrap();
    file
}

fn victim(file: &tempfile::NamedTempFile) -> io::Result<Inode> {
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    let root = reader.root().unwrap();
    let number = reader.entries(&root).unwrap()[&b"victim"[..]];
    reader.inode(number)
}

/// A node of an extent tree with `count` times the same entry.
fn node(depth: u16, count: u16, below: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [0xf30a, count, 340, depth, 0, 0].iter().flat_map(|half: &u16| half.to_le_bytes()).collect();
    for _ in 0..count {
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((below as u32).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes
}

#[test]
fn trees_that_lead_to_one_empty_leaf() {
    let file = changed(5, |inode, write, first| {
        write(0, &node(0, 0, 0));
        (1..5u16).for_each(|depth| write(depth.into(), &node(depth, 340, first + u64::from(depth) - 1)));
        inode[0x28..0x28 + 60].copy_from_slice(&node(5, 4, first + 4));
    });
    within(std::time::Duration::from_secs(60), move || {
        assert!(victim(&file).unwrap_err().to_string().contains("extent tree"));
    });
}

#[test]
fn files_larger_than_any() {
    let file = changed(1, |inode, _, _| inode[0x6c..0x70].copy_from_slice(&[0xff, 0xff, 0xff, 0x3f]));
    assert!(victim(&file).unwrap_err().to_string().contains("size"));
    // More blocks than the disk has, all at the same place.
    let file = changed(1, |inode, write, first| {
        let mut leaf = node(0, 0, 0);
        leaf[2..4].copy_from_slice(&100u16.to_le_bytes());
        for i in 0..100u32 {
            leaf.extend((i * 100).to_le_bytes());
            leaf.extend(100u16.to_le_bytes());
            leaf.extend(0u16.to_le_bytes());
            leaf.extend((first as u32).to_le_bytes());
        }
        write(0, &leaf);
        inode[0x28..0x28 + 24].copy_from_slice(&node(1, 1, first));
    });
    assert!(victim(&file).unwrap_err().to_string().contains("too many"));
}

#[test]
fn superblocks_cost_no_memory() {
    let (mut fs, file) = new(16 << 20);
    fs.end_layer().unwrap();
    // As many groups as there can be.
    for (at, bytes) in [(0x4, [0xff; 4]), (0x20, [1, 0, 0, 0]), (0x28, [1, 0, 0, 0]), (0x0, [0xff; 4])] {
        file.as_file().write_all_at(&bytes, 1024 + at).unwrap();
    }
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    assert!(reader.root().is_err() && reader.inode(u32::MAX).is_err());
}

#[test]
fn walks_have_an_end() {
    let inode = |number, kind, size| Inode {
        number,
        kind: Some(kind),
        mode: 0,
        uid: 0,
        gid: 0,
        size,
        mtime: 0,
        links: 1,
        xattrs: BTreeMap::new(),
        extents: Vec::new(),
    };
    let mut bounds = Bounds::new(1 << 20);
    bounds.enter(&inode(2, Kind::Directory, 4096), 0).unwrap();
    assert!(bounds.enter(&inode(2, Kind::Directory, 4096), 1).is_err(), "a directory in itself");
    assert!(bounds.enter(&inode(3, Kind::Directory, 4096), 513).is_err(), "too deep");
    bounds.content((64 << 30) + (1 << 20)).unwrap();
    assert!(bounds.content(1).is_err(), "more bytes than the disk has");
    let large = inode(4, Kind::File, 0);
    let large = Inode { extents: vec![Extent { logical: 0, count: 1, start: None }; 1 << 20], ..large };
    assert!((0..100).any(|_| bounds.enter(&large, 1).is_err()), "the same extents again and again");
}
