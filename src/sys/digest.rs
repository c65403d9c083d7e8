//! Digest of what a file reads as: the same however its holes lie, so that copies may have others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::file::{length, next_data, next_hole};

/// Bytes that are looked at together.
const PIECE: u64 = 1 << 16;

/// BLAKE3 of the length and of all pieces that are not zero with their places, in hexadecimal. `progress` is told the bytes
/// after each piece.
pub fn digest(file: &File, mut progress: impl FnMut(u64)) -> io::Result<String> {
    let len = length(file)?;
    let mut hash = blake3::Hasher::new();
    hash.update(&len.to_le_bytes());
    let (mut buffer, mut at) = (vec![0; PIECE as usize], 0);
    while let Some(data) = next_data(file, at)?.filter(|&data| data < len) {
        let end = next_hole(file, data)?.min(len);
        at = data / PIECE * PIECE;
        while at < end {
            let piece = &mut buffer[..PIECE.min(len - at) as usize];
            file.read_exact_at(piece, at)?;
            if piece.iter().any(|&byte| byte != 0) {
                hash.update(&at.to_le_bytes()).update(piece);
            }
            at += piece.len() as u64;
            progress(piece.len() as u64);
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeroes() {
        let of = |write: &dyn Fn(&File)| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(10 * PIECE + 7).unwrap();
            write(&file);
            digest(&file, |_| {}).unwrap()
        };
        let sparse = of(&|file| file.write_all_at(&[1; 99], 3 * PIECE - 50).unwrap());
        let dense = of(&|file| {
            file.write_all_at(&vec![0; 10 * PIECE as usize], 0).unwrap();
            file.write_all_at(&[1; 99], 3 * PIECE - 50).unwrap();
        });
        assert_eq!(sparse, dense);
        let others = [
            of(&|file| file.write_all_at(&[1; 99], 3 * PIECE - 49).unwrap()),
            of(&|file| file.write_all_at(&[1; 99], 4 * PIECE - 50).unwrap()),
            of(&|file| file.write_all_at(&[1; 98], 3 * PIECE - 50).unwrap()),
            of(&|file| {
                file.write_all_at(&[1; 99], 3 * PIECE - 50).unwrap();
                file.set_len(10 * PIECE + 8).unwrap();
            }),
            of(&|_| ()),
        ];
        assert!(others.iter().all(|other| *other != sparse));
    }
}
