//! Extended attributes (ext4: Extended Attributes).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{BLOCK_BYTES, acl};

/// Extended attributes by their full names.
type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// How attributes begin.
pub const MAGIC: u32 = 0xea02_0000;
const ENTRY: usize = 16;

/// Prefixes that are numbers on the disk.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];

/// ACLs, whose whole name is a number.
const ACLS: [(u8, &[u8]); 2] = [(2, b"system.posix_acl_access"), (3, b"system.posix_acl_default")];

/// The number of the prefix of a name, and the rest; `None` if ext4 has no place for it.
pub fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((number, _)) = ACLS.iter().find(|(_, acl)| *acl == name) {
        return Some((*number, b""));
    }
    let found = PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
    found.filter(|(_, rest)| !rest.is_empty() && rest.len() <= 255)
}

/// The name with this number and rest.
fn join(number: u8, rest: &[u8]) -> Option<Vec<u8>> {
    if let Some((_, acl)) = ACLS.iter().find(|(known, _)| *known == number) {
        return rest.is_empty().then(|| acl.to_vec());
    }
    let (_, prefix) = PREFIXES.iter().find(|(known, _)| *known == number)?;
    Some([*prefix, rest].concat())
}

fn is_acl(number: u8) -> bool {
    ACLS.iter().any(|(acl, _)| *acl == number)
}

/// Entries and values in `room` bytes; `hash` says whether entries carry theirs. Values are at the end, their places
/// counted from `base` bytes before the first entry.
fn pack(xattrs: &Xattrs, room: usize, base: usize, hash: bool) -> Option<(Vec<u8>, u32)> {
    let mut bytes = vec![0; room];
    let mut known = Vec::new();
    for (name, value) in xattrs {
        let Some((number, rest)) = split(name) else { continue };
        let value = if is_acl(number) { Cow::Owned(acl::to_disk(value)?) } else { Cow::Borrowed(&value[..]) };
        known.push(((number, rest), value));
    }
    // The kernel searches in this order.
    known.sort_by_key(|((number, rest), _)| (*number, rest.len(), rest.to_vec()));
    let (mut at, mut end, mut all) = (0, room, 0u32);
    for ((number, rest), value) in known {
        let next = at + ENTRY + rest.len().next_multiple_of(4);
        end = end.checked_sub(value.len().next_multiple_of(4))?;
        // Four zero bytes end the entries.
        if next + 4 > end {
            return None;
        }
        bytes[end..end + value.len()].copy_from_slice(&value);
        let words = bytes[end..end + value.len().next_multiple_of(4)].as_chunks::<4>().0;
        let named = rest.iter().fold(0u32, |hash, &c| hash.rotate_left(5) ^ u32::from(c));
        let own = words.iter().fold(named, |hash, word| hash.rotate_left(16) ^ u32::from_le_bytes(*word));
        all = all.rotate_left(16) ^ own;
        let entry = &mut bytes[at..next];
        entry[0] = rest.len() as u8;
        entry[1] = number;
        let place = if value.is_empty() { 0 } else { base + end };
        entry[2..4].copy_from_slice(&(place as u16).to_le_bytes());
        entry[8..12].copy_from_slice(&(value.len() as u32).to_le_bytes());
        if hash {
            entry[12..16].copy_from_slice(&own.to_le_bytes());
        }
        entry[ENTRY..ENTRY + rest.len()].copy_from_slice(rest);
        at = next;
    }
    Some((bytes, all))
}

/// Attributes in `room` bytes of an inode; `None` if they do not fit.
pub fn in_inode(xattrs: &Xattrs, room: usize) -> Option<Vec<u8>> {
    if xattrs.is_empty() {
        return Some(vec![0; room]);
    }
    let (packed, _) = pack(xattrs, room - 4, 0, false)?;
    Some([&MAGIC.to_le_bytes()[..], &packed].concat())
}

/// Whether attributes fit in a block, and ACLs are such.
pub fn fits(xattrs: &Xattrs) -> bool {
    pack(xattrs, BLOCK_BYTES - 32, 32, true).is_some()
}

/// A block of attributes; those that do not fit were refused before.
pub fn block(xattrs: &Xattrs) -> Vec<u8> {
    let (packed, hash) = pack(xattrs, BLOCK_BYTES - 32, 32, true).unwrap_or_default();
    let mut bytes: Vec<u8> = [MAGIC, 1, 1, hash].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(32, 0);
    bytes.extend(packed);
    bytes.resize(BLOCK_BYTES, 0);
    bytes
}

/// Reads attributes: entries in `bytes`, whose values are at places counted from `base` bytes before them. What cannot be
/// is left out, and so are values in inodes of their own and what has more bytes than `bytes` together.
pub fn unpack(bytes: &[u8], base: usize, to: &mut Xattrs) {
    let (mut rest, mut left) = (bytes, bytes.len());
    while let [len, number, low, high, _, _, _, _, size @ ..] = rest
        && (*len, *number, *low, *high) != (0, 0, 0, 0)
    {
        let end = ENTRY + usize::from(*len).next_multiple_of(4);
        let (Some(name), Some(size)) = (rest.get(ENTRY..ENTRY + usize::from(*len)), size.first_chunk::<4>())
        else {
            return;
        };
        let (place, size) =
            (usize::from(u16::from_le_bytes([*low, *high])), u32::from_le_bytes(*size) as usize);
        let start = place.saturating_sub(base);
        let value = start.checked_add(size).and_then(|stop| bytes.get(start..stop));
        let value = value.filter(|value| value.len() <= left && rest[4..8] == [0; 4]);
        if let (Some(name), Some(value)) = (join(*number, name), value) {
            left -= value.len();
            let value = if is_acl(*number) { acl::from_disk(value) } else { Some(value.to_vec()) };
            to.extend(value.map(|value| (name, value)));
        }
        rest = rest.get(end..).unwrap_or_default();
    }
}
