//! Writes tar archives, the same bytes for the same content.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::Kind;

/// The header of an entry.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Where it is.
    pub path: &'a [u8],
    /// The target of a link.
    pub link: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of content.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
}

/// No attributes.
static NONE: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();

impl<'a> Entry<'a> {
    /// A regular file of root's.
    pub fn file(path: &'a [u8], size: u64) -> Self {
        Entry {
            path,
            link: b"",
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            device: (0, 0),
            xattrs: &NONE,
        }
    }

    /// Writes the entry with its content.
    ///
    /// # Errors
    /// When that cannot be read or written, or ends before its size.
    pub fn write(&self, content: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut long = |key: &str, value: &[u8]| {
            records.insert(key.into(), value.to_vec());
        };
        if self.path.len() > 100 {
            long("path", self.path);
        }
        if self.link.len() > 100 {
            long("linkpath", self.link);
        }
        if self.size >= 1 << 33 {
            long("size", self.size.to_string().as_bytes());
        }
        if self.mtime < 0 || self.mtime >= 1 << 33 {
            long("mtime", self.mtime.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id >= 1 << 21 {
                long(key, id.to_string().as_bytes());
            }
        }
        for (name, value) in self.xattrs {
            records.insert([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
        }
        if !records.is_empty() {
            let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let head = header(&Entry::file(b"pax", text.len() as u64), b'x');
            to.write_all(&head)?;
            to.write_all(&text)?;
            pad(text.len() as u64, to)?;
        }
        to.write_all(&header(self, self.kind as u8))?;
        let written = io::copy(&mut content.take(self.size), to)?;
        if written < self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pad(self.size, to)
    }
}

/// Ends an archive.
///
/// # Errors
/// The host's.
pub fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 1024])
}

fn pad(size: u64, to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 512][..(size.next_multiple_of(512) - size) as usize])
}

/// `LEN KEY=VALUE\n`, where the length counts its own digits.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut len = rest.len() + 1;
    while rest.len() + len.to_string().len() != len {
        len = rest.len() + len.to_string().len();
    }
    [len.to_string().as_bytes(), &rest].concat()
}

fn header(entry: &Entry, kind: u8) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}\0").into_bytes();
    // What does not fit stands in a record before.
    let fits = |value: u64, bits: u32| if value >> bits == 0 { value } else { 0 };
    put(0, &entry.path[..entry.path.len().min(100)]);
    put(100, &octal(entry.mode.into(), 7));
    put(108, &octal(fits(entry.uid.into(), 21), 7));
    put(116, &octal(fits(entry.gid.into(), 21), 7));
    put(124, &octal(fits(entry.size, 33), 11));
    put(136, &octal(fits(u64::try_from(entry.mtime).unwrap_or(0), 33), 11));
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    if matches!(entry.kind, Kind::Character | Kind::Block) {
        put(329, &octal(fits(entry.device.0.into(), 21), 7));
        put(337, &octal(fits(entry.device.1.into(), 21), 7));
    }
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
