//! Access control lists as archives have them: text (star's records `SCHILY.acl.*`; acl(5)) made what the kernel calls
//! `system.posix_acl_*` (linux/posix_acl_xattr.h).

const VERSION: u32 = 2;
/// Who an entry is for, and its number: for all, or for those that it names.
const TAGS: [(&str, u16, u16); 4] =
    [("user", 0x01, 0x02), ("group", 0x04, 0x08), ("mask", 0x10, 0x10), ("other", 0x20, 0x20)];
const NOBODY: u32 = u32::MAX;

/// The kernel's form of entries such as `user::rw-` and `user:lisa:r--:502`, separated by commas or line ends.
///
/// # Errors
/// An entry that is none, or that has a name and no number.
pub fn parse(text: &[u8]) -> Result<Vec<u8>, &[u8]> {
    let mut entries = Vec::new();
    for entry in text.split(|&byte| matches!(byte, b',' | b'\n')) {
        // What is actually granted may stand behind as a remark.
        let entry = entry.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let (tag, permissions, id) = std::str::from_utf8(entry).ok().and_then(one).ok_or(entry)?;
        entries.push((tag, id, permissions));
    }
    // The kernel takes them in this order alone.
    entries.sort_unstable();
    let mut acl = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    Ok(acl)
}

fn one(entry: &str) -> Option<(u16, u16, u32)> {
    let mut parts = entry.split(':');
    let (who, name, permissions) = (parts.next()?, parts.next()?, parts.next()?);
    let (_, all, named) = TAGS.iter().find(|(word, ..)| *word == who)?;
    let bits = permissions.chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })?;
    match name {
        "" => Some((*all, bits, NOBODY)),
        name => Some((*named, bits, parts.next().unwrap_or(name).parse().ok()?)),
    }
}
