//! What a boot image carries: a compressed ELF kernel, and behind it, or as gzip's own trailer, its size
//! (Linux Documentation/arch/x86/boot.rst, `payload_offset`; scripts/Makefile.lib, `size_append`).

mod xz;

use std::io::{self, Read};

use super::Error;

/// A larger kernel is refused; the largest there are have a tenth of it.
const SIZE_MAX: u32 = 512 << 20;
/// Largest block of the old lz4 format when decompressed.
const LZ4_BLOCK: usize = 8 << 20;
/// What an LZMA decoder may use for its dictionary, in KiB.
const LZMA_MEMORY_KIB: u32 = 1 << 20;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA in its old file format.
    Lzma,
    /// xz, often with the filter for x86 code.
    Xz,
    /// lz4 in its old format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Recognizes a compression by its first bytes.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Compression); 6] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        magics.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, compression)| *compression)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "LZMA",
            Compression::Xz => "xz",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "Zstandard",
        }
    }

    /// Decompresses a payload to exactly the size that it says it has, never more.
    ///
    /// # Errors
    /// The payload is damaged or claims to be larger than any kernel.
    pub fn decompress(self, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let (stream, trailer) =
            payload.split_last_chunk::<4>().ok_or(Error::Damaged { what: "its payload is empty" })?;
        let size = u32::from_le_bytes(*trailer);
        if size > SIZE_MAX {
            return Err(Error::PayloadSize { size_mib: size.div_ceil(1 << 20), limit_mib: SIZE_MAX >> 20 });
        }
        let damaged = |source| Error::Payload { compression: self.name(), source };
        let kernel = self.expand(payload, stream, size as usize).map_err(damaged)?;
        match kernel.len() == size as usize {
            true => Ok(kernel),
            false => {
                Err(damaged(io::Error::new(io::ErrorKind::InvalidData, "the size is another than promised")))
            }
        }
    }

    fn expand(self, payload: &[u8], stream: &[u8], size: usize) -> io::Result<Vec<u8>> {
        match self {
            Compression::Gzip => read(flate2::bufread::GzDecoder::new(payload), size),
            Compression::Bzip2 => read(bzip2::bufread::BzDecoder::new(stream), size),
            Compression::Lzma => {
                read(lzma_rust2::LzmaReader::new_mem_limit(stream, LZMA_MEMORY_KIB, None)?, size)
            }
            Compression::Xz => {
                check_xz(stream)?;
                read(lzma_rust2::XzReader::new(stream, false), size)
            }
            Compression::Zstd => read(zstd::stream::read::Decoder::with_buffer(stream)?.single_frame(), size),
            Compression::Lz4 => lz4(stream, size),
        }
    }
}

/// Refuses a stream whose decoder would take more memory than any kernel needs, and end the program if there is not so much.
fn check_xz(stream: &[u8]) -> io::Result<()> {
    let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
    match xz::largest_dictionary(stream) {
        None => Err(invalid("its blocks are damaged".into())),
        Some(size) if size > SIZE_MAX.into() => {
            Err(invalid(format!("it wants a dictionary of {} MiB", size.div_ceil(1 << 20))))
        }
        Some(_) => Ok(()),
    }
}

/// Reads to the end, but no more than one byte beyond `size`.
fn read(reader: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size);
    reader.take(size as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Blocks after a magic number, each with its compressed length before it.
fn lz4(stream: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut kernel = vec![0; size];
    let (mut rest, mut done) = (stream.get(4..).unwrap_or_default(), 0);
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (block, after) = blocks.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        let end = kernel.len().min(done + LZ4_BLOCK);
        done += lz4_flex::block::decompress_into(block, &mut kernel[done..end]).map_err(io::Error::other)?;
        rest = after;
    }
    kernel.truncate(done);
    Ok(kernel)
}

#[cfg(test)]
pub mod tests;
