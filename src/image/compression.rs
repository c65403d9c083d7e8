//! Archives as they come: compressed or not, from files and from pipes.

use std::cell::Cell;
use std::io::{self, BufReader, Cursor, Read};
use std::rc::Rc;

/// Bytes that are read at once.
const PIECE: usize = 1 << 17;

/// What is compressed more than this many times is made to fill a disk: disk layers and memory are packed, and do not become
/// much smaller.
const MOST: u64 = 200;

/// What may come out of nothing, in bytes.
const SLACK: u64 = 16 << 20;

/// Whether what begins so is compressed with gzip, bzip2, xz or zstd.
pub fn is_compressed(head: &[u8]) -> bool {
    let magics = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"];
    magics.iter().any(|magic| head.starts_with(magic))
}

/// The bytes of `from`, decompressed when gzip, bzip2, xz or zstd have compressed them.
///
/// # Errors
/// When it cannot be read.
pub fn open<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    start(Box::new(from), u64::MAX)
}

/// As [`open`], and what unpacks to more than [`MOST`] times its size is an error.
///
/// # Errors
/// When it cannot be read.
pub fn open_bounded<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    start(Box::new(from), MOST)
}

/// One decompressor for all sources: each is some ten KiB of code.
fn start<'a>(mut from: Box<dyn Read + 'a>, most: u64) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    from.by_ref().take(6).read_to_end(&mut magic)?;
    let taken = Rc::new(Cell::new(magic.len() as u64));
    let from = BufReader::with_capacity(PIECE, Counted { from, count: Rc::clone(&taken) });
    let from = Cursor::new(magic.clone()).chain(from);
    let from: Box<dyn Read + 'a> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(from)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new(Filling(from), true)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        _ => return Ok(Box::new(from)),
    };
    Ok(Box::new(Bounded { from, taken, given: 0, most }))
}

/// Tells how many bytes it gave.
struct Counted<R> {
    from: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(to)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Gives as much as is asked for: lzma-rust2 takes a short read in a block's padding for the end.
struct Filling<R>(R);

impl<R: Read> Read for Filling<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        while count < to.len() {
            match self.0.read(&mut to[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

/// What was decompressed, as long as it is in a relation to what was taken for it.
struct Bounded<R> {
    from: R,
    taken: Rc<Cell<u64>>,
    given: u64,
    most: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        // For lzma-rust2, a read of nothing is the end of a block.
        if to.is_empty() {
            return Ok(0);
        }
        let count = self.from.read(to)?;
        self.given += count as u64;
        match self.given > self.taken.get().saturating_mul(self.most).saturating_add(SLACK) {
            true => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it unpacks to more than {} times its size", self.most),
            )),
            false => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Gives one byte at a time, as a slow pipe does.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(to.len()).min(1);
            self.0.read(&mut to[..count])
        }
    }

    fn pack(content: &[u8]) -> [Vec<u8>; 4] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(content).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bzip2.write_all(content).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(content).unwrap();
        let zstd = zstd::encode_all(content, 3).unwrap();
        [gzip.finish().unwrap(), bzip2.finish().unwrap(), xz.finish().unwrap(), zstd]
    }

    #[test]
    fn what_is_compressed_is_decompressed_wherever_it_comes_from() {
        let content: Vec<u8> = (0..100_000u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
        for packed in pack(&content).iter().chain([&content]) {
            for open in [open, open_bounded] {
                let mut read = Vec::new();
                let mut from = open(Slow(packed)).unwrap();
                from.read_exact(&mut [0; 0]).unwrap();
                assert_eq!(from.read(&mut []).unwrap(), 0);
                from.read_to_end(&mut read).unwrap();
                assert!(read == content, "{:?}", &packed[..4]);
            }
        }
        for short in [&b""[..], b"\x1f", b"hello"] {
            let mut read = Vec::new();
            open_bounded(short).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, short);
        }
    }

    #[test]
    fn what_is_made_to_fill_a_disk_ends_early() {
        for bomb in pack(&vec![0; 64 << 20]) {
            let mut from = open_bounded(bomb.as_slice()).unwrap();
            let error = io::copy(&mut from, &mut io::sink()).unwrap_err().to_string();
            assert!(error.contains("more than 200 times"), "{error}");
        }
    }
}
