//! Access control lists: the kernel gives them to programs in another form than it keeps them in (linux/posix_acl_xattr.h,
//! fs/ext4/acl.h).
//!
//! ```text
//! programs  version 2; for each entry tag, permissions, id
//! ext4      version 1; for each entry tag, permissions, and the id of a named user or group
//! ```

const OUTSIDE: u32 = 2;
const INSIDE: u32 = 1;
/// The tags of named users and groups, and those that have no id.
const NAMED: [u16; 2] = [0x02, 0x08];
const UNNAMED: [u16; 4] = [0x01, 0x04, 0x10, 0x20];
const NOBODY: u32 = u32::MAX;

/// The form on the disk; `None` if it is no list.
pub fn to_disk(acl: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = acl.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != OUTSIDE || !rest.is_empty() {
        return None;
    }
    let mut bytes = INSIDE.to_le_bytes().to_vec();
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match (NAMED.contains(&tag), UNNAMED.contains(&tag)) {
            (true, _) => bytes.extend(entry),
            (_, true) => bytes.extend(&entry[..4]),
            _ => return None,
        }
    }
    Some(bytes)
}

/// The form that programs see; `None` if it is no list.
pub fn from_disk(acl: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = acl.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != INSIDE {
        return None;
    }
    let mut bytes = OUTSIDE.to_le_bytes().to_vec();
    while let Some((entry, after)) = rest.split_first_chunk::<4>() {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        bytes.extend(entry);
        rest = after;
        if NAMED.contains(&tag) {
            let (id, after) = rest.split_first_chunk::<4>()?;
            bytes.extend(id);
            rest = after;
        } else if UNNAMED.contains(&tag) {
            bytes.extend(NOBODY.to_le_bytes());
        } else {
            return None;
        }
    }
    rest.is_empty().then_some(bytes)
}
