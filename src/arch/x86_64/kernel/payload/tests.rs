use std::io::Write;
use std::process::{Command, Stdio};

use super::super::fake::{FakeElf, text};
use super::*;

/// Command lines of the kernel's own build for each compression.
pub const TOOLS: [(Compression, &[&str]); 7] = [
    (Compression::Gzip, &["gzip", "-n", "-9"]),
    (Compression::Bzip2, &["bzip2", "-9"]),
    (Compression::Lzma, &["xz", "--format=lzma", "-9"]),
    (Compression::Xz, &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"]),
    (Compression::Xz, &["xz", "--check=crc32", "-6"]),
    (Compression::Lz4, &["lz4", "-l", "-9"]),
    (Compression::Zstd, &["zstd", "-22", "--ultra"]),
];

/// A payload as the kernel's build makes it, or nothing if the machine lacks the tool.
pub fn compress(compression: Compression, command: &[&str], kernel: &[u8]) -> Option<Vec<u8>> {
    let tool = Command::new(command[0])
        .args(&command[1..])
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tool) = tool else {
        crate::testing::skip(format!("there is no {}", command[0]));
        return None;
    };
    let mut stdin = tool.stdin.take().unwrap();
    let copy = kernel.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let output = tool.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{command:?}");
    let mut payload = output.stdout;
    if compression != Compression::Gzip {
        payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
    }
    Some(payload)
}

/// Calls `each` with every compression and what it makes of `kernel`.
fn each_payload(kernel: &[u8], mut each: impl FnMut(Compression, Vec<u8>)) {
    for (compression, command) in TOOLS {
        if let Some(payload) = compress(compression, command, kernel) {
            each(compression, payload);
        }
    }
}

/// Code that the filter for x86 changes: calls with relative targets.
fn code() -> Vec<u8> {
    (0u32..60_000)
        .flat_map(|place| [&[0xe8][..], &(0x1000 - place as i32 * 5).to_le_bytes()].concat())
        .collect()
}

#[test]
fn every_compression_round_trips() {
    for kernel in [FakeElf::linux().build(), code()] {
        each_payload(&kernel, |compression, payload| {
            assert_eq!(Compression::detect(&payload), Some(compression));
            assert!(compression.decompress(&payload).unwrap() == kernel, "{compression:?}");
        });
    }
}

#[test]
fn lz4_has_blocks() {
    let kernel = text(9 << 20);
    let Some(payload) = compress(Compression::Lz4, &["lz4", "-l"], &kernel) else { return };
    assert!(Compression::Lz4.decompress(&payload).unwrap() == kernel);
}

#[test]
fn no_prefix_decompresses() {
    let kernel = FakeElf::linux().build();
    each_payload(&kernel, |compression, payload| {
        for len in 0..payload.len() {
            let whole = compression.decompress(&payload[..len]).is_ok_and(|result| result == kernel);
            assert!(!whole, "{compression:?}: {len} of {} bytes", payload.len());
        }
    });
}

#[test]
fn no_flipped_byte_panics() {
    let kernel = FakeElf::linux().build();
    each_payload(&kernel, |compression, payload| {
        for at in 0..payload.len() {
            let mut damaged = payload.clone();
            damaged[at] ^= [1, 0x40, 0xff][at % 3];
            let _ = compression.decompress(&damaged);
        }
    });
}

#[test]
fn bombs_are_refused() {
    let kernel = vec![0; 3 << 20];
    each_payload(&kernel, |compression, mut payload| {
        let trailer = payload.len() - 4;
        payload[trailer..].copy_from_slice(&(2u32 << 20).to_le_bytes());
        let error = compression.decompress(&payload).unwrap_err();
        assert!(matches!(error, Error::Payload { .. }), "{compression:?}: {error}");
        payload[trailer..].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = compression.decompress(&payload).unwrap_err();
        assert!(
            matches!(error, Error::PayloadSize { size_mib: 4096, limit_mib: 512 }),
            "{compression:?}: {error}"
        );
    });
}

#[test]
fn others_are_not_known() {
    for other in [&b"\x89LZO"[..], b"\x7fELF", b"", b"\x1f"] {
        assert_eq!(Compression::detect(other), None);
    }
}
