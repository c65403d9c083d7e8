//! Reads tar archives from strangers, entry by entry, within limits (POSIX.1-2017, pax: ustar and pax interchange formats; GNU long names).

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::image::Error;

const BLOCK: usize = 512;

/// The most bytes of extended headers and long names of one entry.
const LONGEST_HEADER: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// Another name for an entry before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// The header of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path as it stands there: believe nothing.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
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
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// An archive.
pub struct Archive<R> {
    from: R,
    /// Content and padding of the entry before that were not read.
    left: u64,
    padding: u64,
    /// Bytes so far.
    offset: u64,
    limit: u64,
    global: Records,
}

/// Records of extended headers.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn invalid(reason: impl Into<String>) -> Error {
    Error::invalid("The archive", reason)
}

fn reading(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => invalid("it is cut off"),
        _ => Error::Io { doing: "read", path: "the archive".into(), source },
    }
}

impl<R: Read> Archive<R> {
    /// An archive of at most `limit` bytes.
    pub fn new(from: R, limit: u64) -> Self {
        Archive { from, left: 0, padding: 0, offset: 0, limit, global: Records::new() }
    }

    /// The next entry. What was not read of the one before is skipped.
    ///
    /// # Errors
    /// When the archive is damaged, hostile or cannot be read.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        let (mut records, mut long_path, mut long_link) = (self.global.clone(), None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136])?;
            match header[156] {
                b'L' => long_path = Some(self.name(size)?),
                b'K' => long_link = Some(self.name(size)?),
                b'x' => records.extend(parse_records(&self.small(size)?)?),
                b'g' => {
                    let more = parse_records(&self.small(size)?)?;
                    self.global.extend(more);
                    records.extend(self.global.clone());
                }
                _ => return self.entry(&header, size, records, long_path, long_link).map(Some),
            }
        }
    }

    /// Where the content of the current entry begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        size: u64,
        records: Records,
        path: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
    ) -> Result<Entry, Error> {
        let record = |key: &str| records.get(key.as_bytes());
        let decimal = |key: &str| -> Result<Option<u64>, Error> {
            let Some(text) = record(key) else { return Ok(None) };
            let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            value.map(Some).ok_or_else(|| invalid(format!("its record `{key}` is no number")))
        };
        if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) || header[156] == b'S' {
            return Err(invalid("it has sparse entries: make it again without `--sparse`"));
        }
        let own = text(&header[..100]);
        // Only POSIX has a prefix; GNU has other things there.
        let prefix = if &header[257..263] == b"ustar\0" { text(&header[345..500]) } else { b"" };
        let whole = if prefix.is_empty() { own.to_vec() } else { [prefix, own].join(&b'/') };
        let path = record("path").cloned().or(path).unwrap_or(whole);
        let link = record("linkpath").cloned().or(link).unwrap_or_else(|| text(&header[157..257]).to_vec());
        let kind = match header[156] {
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // Old archives have directories that end in a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            other => return Err(invalid(format!("it has an entry of unknown kind {:?}", char::from(other)))),
        };
        // Other kinds have no content, whatever they say.
        let size = if kind == Kind::File { decimal("size")?.unwrap_or(size) } else { 0 };
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let narrow =
            |value: u64| u32::try_from(value).map_err(|_| invalid("it has an owner or device out of range"));
        let id =
            |key: &str, at: usize| narrow(decimal(key)?.map_or_else(|| number(&header[at..at + 8]), Ok)?);
        let mtime = match record("mtime") {
            Some(text) => seconds(text).ok_or_else(|| invalid("it has a time that is none"))?,
            None => number(&header[136..148])? as i64,
        };
        let xattr = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))
        };
        let device = match kind {
            Kind::Character | Kind::Block => {
                (narrow(number(&header[329..337])?)?, narrow(number(&header[337..345])?)?)
            }
            _ => (0, 0),
        };
        Ok(Entry {
            path,
            link,
            kind,
            mode: (number(&header[100..108])? & 0o7777) as u16,
            uid: id("uid", 108)?,
            gid: id("gid", 116)?,
            mtime,
            size,
            device,
            xattrs: records.iter().filter_map(xattr).collect(),
        })
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut header = [0; BLOCK];
        let mut done = 0;
        while done < BLOCK {
            match self.from.read(&mut header[done..]).map_err(reading)? {
                // Some archives just end.
                0 if done == 0 => return Ok(None),
                0 => return Err(invalid("it is cut off")),
                count => done += count,
            }
        }
        self.count(BLOCK as u64)?;
        if header.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum = |(at, &byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { byte });
        if number(&header[148..156])? != header.iter().enumerate().map(sum).sum::<u64>() {
            return Err(invalid("it is no tar archive, or damaged: a checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.offset = self.offset.saturating_add(bytes);
        if self.offset > self.limit {
            return Err(Error::TooLarge { what: "The archive".into(), limit: self.limit });
        }
        Ok(())
    }

    fn small(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > LONGEST_HEADER {
            return Err(invalid(format!("it has an extended header of {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.from.read_exact(&mut bytes).map_err(reading)?;
        self.count(size)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(bytes)
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        Ok(text(&self.small(size)?).to_vec())
    }

    fn skip(&mut self) -> Result<(), Error> {
        let rest = self.left.saturating_add(self.padding);
        self.count(rest)?;
        let skipped = io::copy(&mut (&mut self.from).take(rest), &mut io::sink()).map_err(reading)?;
        if skipped < rest {
            return Err(invalid("it is cut off"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }
}

/// The content of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.from.read(&mut to[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.left -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A field up to its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or with the highest bit set big-endian binary.
fn number(field: &[u8]) -> Result<u64, Error> {
    let bad = || invalid("it is no tar archive, or damaged: a field is no number");
    if field[0] & 0x80 != 0 {
        // Negative numbers, which begin with 0xff, are none of ours.
        let (head, tail) = field.split_at(field.len() - 8.min(field.len() - 1));
        let zero = head.iter().enumerate().all(|(at, &byte)| byte == if at == 0 { 0x80 } else { 0 });
        return zero
            .then(|| tail.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
            .ok_or_else(bad);
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |number, &digit| match digit {
        b'0'..=b'7' => number.checked_mul(8).map(|number| number + u64::from(digit - b'0')).ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// Whole seconds of a decimal number.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    text.split('.').next()?.parse().ok()
}

/// `LEN KEY=VALUE\n`, one after the other.
fn parse_records(mut bytes: &[u8]) -> Result<Records, Error> {
    let bad = || invalid("it has an extended header that is damaged");
    let mut records = Records::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
        let len = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let len = len.filter(|&len| len > space + 1 && len <= bytes.len()).ok_or_else(bad)?;
        let (record, rest) = bytes.split_at(len);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        bytes = rest;
    }
    Ok(records)
}
