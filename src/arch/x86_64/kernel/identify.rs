//! What a file is, by its first bytes.

use super::Error;

/// How many bytes from the start are looked at.
pub const HEAD: usize = 0x8010;

/// A kernel that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ELF of any kind.
    Elf,
    /// Linux x86 boot image.
    BzImage,
}

/// What else people hand over as a kernel: (offset, bytes there, what it is).
const OTHERS: [(usize, &[u8], &str); 22] = [
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"#!", "a script"),
    (0, b"070701", "a cpio archive, such as an initial RAM disk"),
    (0, b"070702", "a cpio archive, such as an initial RAM disk"),
    (0, b"!<arch>\n", "an archive, such as a Debian package"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"{", "a JSON file"),
    (257, b"ustar", "a tar archive"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an erofs image"),
    (0x438, b"\x53\xef", "an ext4 image"),
    (0x200, b"EFI PART", "a partitioned disk image"),
    (0x8001, b"CD001", "a CD image"),
    (0x1fe, b"\x55\xaa", "a disk image or a boot sector"),
];

/// Finds out what a file is from its first [`HEAD`] bytes, or fewer if it is shorter.
pub fn identify(head: &[u8]) -> Result<Format, Error> {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if has(0, b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if has(0x202, b"HdrS") {
        return Ok(Format::BzImage);
    }
    if has(56, b"ARM\x64") {
        return Err(Error::Architecture { found: "AArch64".into() });
    }
    if has(56, b"RSC\x05") {
        return Err(Error::Architecture { found: "RISC-V".into() });
    }
    let looks = match OTHERS.iter().find(|(at, magic, _)| has(*at, magic)) {
        Some((_, _, looks)) => looks,
        None if head.is_empty() => "an empty file",
        None if head.iter().all(|&byte| byte == 0) => "a file of zeroes",
        None if head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) => "a text file",
        None if has(0, b"MZ") => "a program for Windows or EFI",
        None => "a file of a kind that rvmm does not know",
    };
    Err(Error::NotKernel { looks })
}
