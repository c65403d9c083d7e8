//! What is written is read, and what is hostile costs no memory.

use std::collections::BTreeMap;
use std::io;

use super::*;

#[test]
fn what_is_written_is_read() {
    let xattrs = BTreeMap::from([(b"user.a".to_vec(), vec![0, 10, 61]), (b"user.b".to_vec(), vec![7; 90])]);
    let path = [b"d/".to_vec(), vec![b'x'; 300]].concat();
    let content = [5; 700];
    let mut bytes = Vec::new();
    let long = Entry {
        uid: 3_000_000,
        mode: 0o4755,
        mtime: -5,
        xattrs: &xattrs,
        ..Entry::file(&path, content.len() as u64)
    };
    long.write(&mut &content[..], &mut bytes).unwrap();
    let link = Entry { link: &path, kind: Kind::HardLink, ..Entry::file(b"hard", 0) };
    link.write(&mut io::empty(), &mut bytes).unwrap();
    let device = Entry { kind: Kind::Block, device: (259, 70_000), ..Entry::file(b"sda", 0) };
    device.write(&mut io::empty(), &mut bytes).unwrap();
    end(&mut bytes).unwrap();
    let mut archive = Archive::new(bytes.as_slice(), u64::MAX);
    let first = archive.next().unwrap().unwrap();
    assert_eq!((first.path, first.uid, first.mode, first.mtime), (path.clone(), 3_000_000, 0o4755, -5));
    assert_eq!((first.xattrs, first.size), (xattrs, 700));
    let second = archive.next().unwrap().unwrap();
    assert_eq!((second.kind, second.link), (Kind::HardLink, path));
    assert_eq!(archive.next().unwrap().unwrap().device, (259, 70_000));
    assert!(archive.next().unwrap().is_none());
    assert!(Entry::file(b"short", 9).write(&mut &b"no"[..], &mut Vec::new()).is_err());
}

/// An archive of raw headers with content: those that [`Entry`] does not write.
fn raw(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, content) in entries {
        let mut one = Vec::new();
        Entry::file(b"name", content.len() as u64).write(&mut { *content }, &mut one).unwrap();
        one[156] = *kind;
        seal(&mut one);
        bytes.extend(one);
    }
    end(&mut bytes).unwrap();
    bytes
}

#[test]
fn an_entry_beyond_the_limit_is_refused_before_it_is_read() {
    let mut bytes = Vec::new();
    Entry::file(b"large", 5000).write(&mut io::repeat(1), &mut bytes).unwrap();
    let next = |limit| Archive::new(bytes.as_slice(), limit).next();
    assert!(next(6000).unwrap().is_some());
    let error = next(2000).unwrap_err();
    assert!(matches!(error, crate::image::Error::TooLarge { limit: 2000, .. }), "{error}");
}

fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn record(key: &str, len: usize) -> Vec<u8> {
    super::write::record(key.as_bytes(), &vec![b'1'; len])
}

#[test]
fn headers_are_bounded_together() {
    let half = record("comment", 600 << 10);
    let small = record("comment", 10);
    let refused = |bytes: &[u8]| Archive::new(bytes, u64::MAX).next().is_err();
    assert!(refused(&raw(&[(b'x', &half), (b'x', &half), (b'0', b"")])), "records of one entry add up");
    assert!(refused(&raw(&[(b'L', &half), (b'K', &half), (b'0', b"")])), "and so do names");
    let many: Vec<(u8, &[u8])> = vec![(b'g', &small); 3000];
    assert!(refused(&raw(&many)), "headers without an entry have an end");
    assert!(refused(&raw(&[(b'g', &record("SCHILY.xattr.user.a", 100 << 10)), (b'0', b"")])));
    // For all entries, and an entry's own word is stronger.
    let both = raw(&[(b'g', &record("gid", 3)), (b'0', b""), (b'x', &record("gid", 2)), (b'0', b"")]);
    let mut archive = Archive::new(both.as_slice(), u64::MAX);
    let gids = [archive.next().unwrap().unwrap().gid, archive.next().unwrap().unwrap().gid];
    assert_eq!(gids, [111, 11]);
    // What is for all is kept once, however often it is said.
    let keys: Vec<Vec<u8>> = (0..40).map(|i| record(&format!("key{i}"), 4000)).collect();
    let pieces: Vec<_> = keys.iter().flat_map(|key| [(b'g', key.as_slice()), (b'0', &b""[..])]).collect();
    let pieces = raw(&pieces);
    let mut archive = Archive::new(pieces.as_slice(), u64::MAX);
    let error = (0..40).find_map(|_| archive.next().err()).unwrap().to_string();
    assert!(error.contains("for all entries"), "{error}");
}

#[test]
fn times_before_1970() {
    let mut bytes = Vec::new();
    Entry::file(b"old", 0).write(&mut io::empty(), &mut bytes).unwrap();
    bytes[136..148].fill(0xff);
    bytes[147] = 0xfe;
    seal(&mut bytes);
    assert_eq!(Archive::new(bytes.as_slice(), u64::MAX).next().unwrap().unwrap().mtime, -2);
    // Nothing else is negative.
    bytes[124..136].fill(0xff);
    seal(&mut bytes);
    assert!(Archive::new(bytes.as_slice(), u64::MAX).next().is_err());
}

#[test]
fn acls_of_text() {
    let text = "user::rw-,user:lisa:r--:502\ngroup::r-x\t#effective:r--,group:7:-w-,mask::rwx,other::---";
    let kernel = [
        (1, 6, u32::MAX),
        (2, 4, 502),
        (4, 5, u32::MAX),
        (8, 2, 7),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let entries = kernel.iter().flat_map(|&(tag, permissions, id): &(u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    let wanted: Vec<u8> = [2, 0, 0, 0].into_iter().chain(entries).collect();
    let records = super::write::record(b"SCHILY.acl.default", text.as_bytes());
    let bytes = raw(&[(b'x', &records), (b'0', b"")]);
    let found = Archive::new(bytes.as_slice(), u64::MAX).next().unwrap().unwrap();
    assert_eq!(found.xattrs, BTreeMap::from([(b"system.posix_acl_default".to_vec(), wanted)]));
    let named = super::write::record(b"SCHILY.acl.access", b"user::rw-,user:lisa:r--,other::---");
    let bytes = raw(&[(b'x', &named), (b'0', b"")]);
    let error = Archive::new(bytes.as_slice(), u64::MAX).next().unwrap_err().to_string();
    assert!(error.contains("user:lisa:r--") && error.contains("--numeric-owner"), "{error}");
}
