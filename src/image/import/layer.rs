//! Applies one layer of a container image to a file system (OCI image specification 1.1, Image Layer Filesystem Changeset).

use std::io::Read;

use crate::image::Error;
use crate::image::ext4::{self, Attributes, FileSystem};
use crate::image::tar::{Archive, Found, Kind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// The most entries of one layer.
const MOST_ENTRIES: usize = 4 << 20;

/// Applies the tar archive in `from`, of at most `limit` bytes.
///
/// # Errors
/// When the archive is damaged or hostile, or the file system is full.
pub fn apply(fs: &mut FileSystem, from: impl Read, limit: u64) -> Result<(), Error> {
    let mut archive = Archive::new(from, limit);
    for _ in 0..MOST_ENTRIES {
        match archive.next()? {
            Some(entry) => put(fs, entry, &mut archive)?,
            None => return Ok(()),
        }
    }
    Err(Error::invalid("The archive", format!("it has more than {MOST_ENTRIES} entries")))
}

fn put(fs: &mut FileSystem, entry: Found, content: &mut impl Read) -> Result<(), Error> {
    let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
    let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    if name == OPAQUE {
        return Ok(fs.clear(directory)?);
    }
    if name.starts_with(RESERVED) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        // Nothing is hidden by a name that leads elsewhere.
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::invalid("The archive", "it has a whiteout that hides no name"));
        }
        return Ok(fs.remove(&[directory, hidden].join(&b'/')[usize::from(directory.is_empty())..])?);
    }
    let (major, minor) = entry.device;
    let kind = match entry.kind {
        Kind::HardLink => return Ok(fs.link(path, &entry.link)?),
        Kind::File => ext4::Kind::File,
        Kind::Symlink => ext4::Kind::Symlink(entry.link),
        Kind::Character => ext4::Kind::Character(major, minor),
        Kind::Block => ext4::Kind::Block(major, minor),
        Kind::Directory => ext4::Kind::Directory,
        Kind::Fifo => ext4::Kind::Fifo,
    };
    let attributes = Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs,
    };
    let id = fs.put(path, kind, attributes)?;
    if entry.size > 0 {
        fs.fill(id, entry.size, content)?;
    }
    Ok(())
}
