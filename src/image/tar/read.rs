//! Reads tar archives from strangers, entry by entry, within limits (POSIX.1-2017, pax; GNU long names).

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::{Kind, acl};
use crate::image::Error;

const BLOCK: usize = 512;

/// The most bytes of extended headers and long names before one entry, their own headers included.
const LONGEST_HEADER: u64 = 1 << 20;

/// The most bytes of records that are for all entries.
const LARGEST_GLOBAL: usize = 64 << 10;

/// The header of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
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

/// What stands before an entry and is for it alone.
#[derive(Default)]
struct Before {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// What is said of an entry: in its header, in records of its own, in those for all.
struct Fields<'a> {
    header: &'a [u8; BLOCK],
    own: &'a Records,
    global: &'a Records,
}

impl<'a> Fields<'a> {
    fn record(&self, key: &str) -> Option<&'a Vec<u8>> {
        self.own.get(key.as_bytes()).or_else(|| self.global.get(key.as_bytes()))
    }

    /// The records whose keys begin with `prefix`, without it; its own come last.
    fn any(&self, prefix: &'static [u8]) -> impl Iterator<Item = (&'a [u8], &'a Vec<u8>)> + use<'a> {
        let all = self.global.iter().chain(self.own);
        all.filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
    }

    fn decimal(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(text) = self.record(key) else { return Ok(None) };
        let value = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        value.map(Some).ok_or_else(|| invalid(format!("its record `{key}` is no number")))
    }

    /// The path in the header.
    fn path(&self) -> Vec<u8> {
        let own = text(&self.header[..100]);
        // Only POSIX has a prefix; GNU has other things there.
        let is_posix = &self.header[257..263] == b"ustar\0";
        match if is_posix { text(&self.header[345..500]) } else { b"" } {
            b"" => own.to_vec(),
            prefix => [prefix, own].join(&b'/'),
        }
    }

    fn id(&self, key: &str, at: usize) -> Result<u32, Error> {
        match self.decimal(key)? {
            Some(id) => u32::try_from(id).map_err(|_| out_of_range()),
            None => narrow(&self.header[at..at + 8]),
        }
    }

    fn mtime(&self) -> Result<i64, Error> {
        match self.record("mtime") {
            Some(text) => seconds(text).ok_or_else(|| invalid("it has a time that is none")),
            None => signed(&self.header[136..148]),
        }
    }

    /// Extended attributes, ACLs in the form that the kernel gives them.
    fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
        let mut xattrs: BTreeMap<_, _> =
            self.any(b"SCHILY.xattr.").map(|(name, value)| (name.to_vec(), value.clone())).collect();
        for (kind, text) in self.any(b"SCHILY.acl.") {
            let name = [b"system.posix_acl_", kind].concat();
            let acl = acl::parse(text).map_err(|entry| {
                let entry = String::from_utf8_lossy(entry);
                invalid(format!("it has an ACL with `{entry}`: make it again with `tar --numeric-owner`"))
            })?;
            xattrs.insert(name, acl);
        }
        Ok(xattrs)
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::invalid("The archive", reason)
}

fn out_of_range() -> Error {
    invalid("it has an owner or device out of range")
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
    pub fn next(&mut self) -> Result<Option<Found>, Error> {
        let (mut before, mut bytes) = (Before::default(), 0u64);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136])?;
            if !matches!(header[156], b'L' | b'K' | b'x' | b'g') {
                return self.entry(&header, size, &before).map(Some);
            }
            bytes = bytes.saturating_add(size).saturating_add(BLOCK as u64);
            if bytes > LONGEST_HEADER {
                return Err(invalid(format!("it has an entry with extended headers of {bytes} bytes")));
            }
            let content = self.small(size)?;
            match header[156] {
                b'L' => before.path = Some(text(&content).to_vec()),
                b'K' => before.link = Some(text(&content).to_vec()),
                b'x' => before.records.extend(parse_records(&content)?),
                _ => self.for_all(parse_records(&content)?)?,
            }
        }
    }

    /// Where the content of the current entry begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Keeps records that are for all entries from here on.
    fn for_all(&mut self, records: Records) -> Result<(), Error> {
        self.global.extend(records);
        let bytes: usize = self.global.iter().map(|(key, value)| key.len() + value.len()).sum();
        match bytes > LARGEST_GLOBAL {
            true => Err(invalid(format!("it has {bytes} bytes of records that are for all entries"))),
            false => Ok(()),
        }
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, before: &Before) -> Result<Found, Error> {
        let fields = Fields { header, own: &before.records, global: &self.global };
        if fields.any(b"GNU.sparse.").next().is_some() || header[156] == b'S' {
            return Err(invalid("it has sparse entries: make it again without `--sparse`"));
        }
        let path = fields.record("path").cloned().or(before.path.clone()).unwrap_or(fields.path());
        let link = fields.record("linkpath").cloned().or(before.link.clone());
        let kind = kind(header[156], &path)?;
        // Other kinds have no content, whatever they say.
        let size = if kind == Kind::File { fields.decimal("size")?.unwrap_or(size) } else { 0 };
        let found = Found {
            link: link.unwrap_or_else(|| text(&header[157..257]).to_vec()),
            path,
            kind,
            mode: (number(&header[100..108])? & 0o7777) as u16,
            uid: fields.id("uid", 108)?,
            gid: fields.id("gid", 116)?,
            mtime: fields.mtime()?,
            size,
            device: match kind {
                Kind::Character | Kind::Block => (narrow(&header[329..337])?, narrow(&header[337..345])?),
                _ => (0, 0),
            },
            xattrs: fields.xattrs()?,
        };
        // Before anybody reads it.
        if self.offset.saturating_add(size) > self.limit {
            return Err(self.too_large());
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(found)
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
        match is_header(&header) {
            true => Ok(Some(header)),
            false => Err(invalid("it is no tar archive, or damaged: a checksum is wrong")),
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.offset = self.offset.saturating_add(bytes);
        if self.offset > self.limit {
            return Err(self.too_large());
        }
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::TooLarge { what: "The archive".into(), limit: self.limit }
    }

    fn small(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; size as usize];
        self.from.read_exact(&mut bytes).map_err(reading)?;
        self.count(size)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(bytes)
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

/// Whether the first block of a file is the header of an entry: its checksum is right.
pub fn is_header(block: &[u8; BLOCK]) -> bool {
    let byte = |(at, &byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { byte });
    number(&block[148..156]).is_ok_and(|sum| sum == block.iter().enumerate().map(byte).sum::<u64>())
}

fn kind(byte: u8, path: &[u8]) -> Result<Kind, Error> {
    Ok(match byte {
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
    })
}

/// A number: octal digits, or with the highest bit set big-endian binary.
fn signed(field: &[u8]) -> Result<i64, Error> {
    let bad = || invalid("it is no tar archive, or damaged: a field is no number");
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len() - 8.min(field.len() - 1));
        // Negative numbers begin with 0xff.
        let sign = if field[0] == 0xff { 0xff } else { 0 };
        let fits =
            head.iter().enumerate().all(|(at, &byte)| byte == if at == 0 { 0x80 | sign } else { sign });
        let start = if sign == 0 { 0 } else { u64::MAX };
        let number = tail.iter().fold(start, |number, &byte| number << 8 | u64::from(byte)) as i64;
        return if fits && (number < 0) == (sign != 0) { Ok(number) } else { Err(bad()) };
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0i64, |number, &digit| match digit {
        b'0'..=b'7' => number.checked_mul(8).map(|number| number + i64::from(digit - b'0')).ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// As [`signed`], of what cannot be negative.
fn number(field: &[u8]) -> Result<u64, Error> {
    u64::try_from(signed(field)?).map_err(|_| invalid("it has a negative number where none can be"))
}

fn narrow(field: &[u8]) -> Result<u32, Error> {
    u32::try_from(number(field)?).map_err(|_| out_of_range())
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
