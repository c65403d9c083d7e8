//! How much memory an xz stream wants of its decoder, which asks nobody before it takes it ("The .xz File Format", 1.2.1;
//! chunks of LZMA2 as in the kernel's `lib/xz/xz_dec_lzma2.c`).
//!
//! ```text
//!   header │ block: header with filters ─ chunks of LZMA2 ─ padding ─ check │ more blocks │ index
//! ```

const STREAM_HEADER: usize = 12;
const LZMA2: u64 = 0x21;
/// Bytes of the check behind a block, by its kind.
const CHECKS: [usize; 16] = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];

/// The largest dictionary in bytes that a block of the first stream in `bytes` has; `None` if it is damaged.
pub fn largest_dictionary(bytes: &[u8]) -> Option<u64> {
    let check = CHECKS[usize::from(bytes.get(7)? & 15)];
    let (mut at, mut largest) = (STREAM_HEADER, 0);
    loop {
        let words = usize::from(*bytes.get(at)?);
        if words == 0 {
            // The index.
            return Some(largest);
        }
        let header = bytes.get(at..at + (words + 1) * 4)?;
        largest = largest.max(dictionary(header)?);
        let chunks = chunks(bytes.get(at + header.len()..)?)?;
        at += header.len() + chunks.next_multiple_of(4) + check;
    }
}

/// The dictionary of a block with this header.
fn dictionary(header: &[u8]) -> Option<u64> {
    let flags = *header.get(1)?;
    let mut rest = header.get(2..)?;
    // The sizes of the block, as far as they are told.
    for told in [0x40, 0x80] {
        if flags & told != 0 {
            number(&mut rest)?;
        }
    }
    for _ in 0..=flags & 3 {
        let (id, len) = (number(&mut rest)?, number(&mut rest)?);
        let (properties, behind) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        if id == LZMA2 {
            let size = u32::from(*properties.first()?);
            return (size <= 40).then(|| u64::from(2 | size & 1) << (size / 2 + 11));
        }
        rest = behind;
    }
    None
}

/// Takes a number in groups of seven bits from the start of `bytes`.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// How many bytes the chunks of a block take, with the byte that ends them.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let word = |at: usize| Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?));
        at += match *bytes.get(at)? {
            0 => return Some(at + 1),
            // As they are.
            1 | 2 => 3 + word(at + 1)? + 1,
            // With new properties, and without.
            0xc0.. => 6 + word(at + 3)? + 1,
            0x80.. => 5 + word(at + 3)? + 1,
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::compress;
    use super::super::{Compression, Error};
    use super::*;

    fn xz(options: &[&str], contents: &[u8]) -> Option<Vec<u8>> {
        compress(Compression::Xz, &[&["xz"], options].concat(), contents)
    }

    #[test]
    fn the_largest_of_all_blocks_is_found() {
        let contents: Vec<u8> = (0..300_000_u32).map(|n| (n % 251 * (n >> 12)) as u8).collect();
        for (options, expected) in [
            (&["--lzma2=dict=1MiB"][..], 1 << 20),
            (&["--check=none", "--x86", "--lzma2=dict=3MiB"], 3 << 20),
            (&["--check=sha256", "--block-size=70000", "--lzma2=dict=1536KiB"], 3 << 19),
        ] {
            let Some(stream) = xz(options, &contents) else { return };
            assert_eq!(largest_dictionary(&stream), Some(expected), "{options:?}");
            for len in 0..stream.len().min(1000) {
                assert_ne!(largest_dictionary(&stream[..len]), Some(expected), "{options:?} cut at {len}");
            }
        }
    }

    #[test]
    fn a_dictionary_that_no_kernel_needs_is_refused() {
        let Some(mut payload) = xz(&["--lzma2=dict=1MiB"], &[1; 1000]) else { return };
        let header = STREAM_HEADER..STREAM_HEADER + (usize::from(payload[STREAM_HEADER]) + 1) * 4;
        let properties = payload[header.clone()].windows(2).position(|pair| pair == [0x21, 1]).unwrap() + 2;
        // 3 GiB.
        payload[header.start + properties] = 39;
        let mut crc = flate2::Crc::new();
        crc.update(&payload[header.start..header.end - 4]);
        payload[header.end - 4..header.end].copy_from_slice(&crc.sum().to_le_bytes());
        assert_eq!(largest_dictionary(&payload), Some(3 << 30));
        let error = Compression::Xz.decompress(&payload).unwrap_err();
        assert!(matches!(&error, Error::Payload { source, .. } if source.to_string().contains("3072 MiB")));
    }
}
