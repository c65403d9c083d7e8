use std::fs;

use tempfile::TempDir;

use super::fake::{FakeElf, PVH, START, bzimage, text};
use super::payload::tests::{TOOLS, compress};
use super::*;
use crate::arch::x86_64::{self, layout};
use crate::memory::{Pages, allocate};

fn memory() -> Memory {
    allocate(&layout::ram_ranges(32 << 20), Pages::Transparent).unwrap()
}

/// Writes a file and opens it as a kernel.
fn open(directory: &TempDir, contents: &[u8], cache: Option<&Path>) -> Result<Kernel, Error> {
    let path = directory.path().join("kernel");
    fs::write(&path, contents).unwrap();
    Kernel::open(&path, cache).map_err(|error| match error {
        x86_64::Error::Kernel { path: named, source } if named == path => source,
        other => panic!("{other}"),
    })
}

fn entry(kernel: &Kernel) -> Protocol {
    kernel.load(&memory(), Preference::default()).unwrap().protocol
}

const PVH_ENTRY: Protocol = Protocol::Pvh { entry: GuestAddress(PVH) };

#[test]
fn elf_files_are_booted() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = open(&directory, &FakeElf::linux().build(), None).unwrap();
    assert_eq!(entry(&kernel), PVH_ENTRY);
    assert_eq!(entry(&kernel), PVH_ENTRY, "a second time, after a restart");
    let linux = kernel.load(&memory(), Preference::Linux64).unwrap().protocol;
    assert_eq!(linux, Protocol::Linux64 { entry: GuestAddress(START) });
}

#[test]
fn the_elf_in_a_boot_image_is_booted() {
    let directory = tempfile::tempdir().unwrap();
    for (compression, command) in TOOLS {
        if let Some(payload) = compress(compression, command, &FakeElf::linux().build()) {
            let kernel = open(&directory, &bzimage(&payload), None).unwrap();
            assert_eq!(entry(&kernel), PVH_ENTRY, "{command:?}");
        }
    }
}

#[test]
fn what_cannot_be_decompressed_decompresses_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut payloads = vec![b"\x89LZO and so on".to_vec(), vec![]];
    // What only looks like something that is known here.
    payloads.push(b"\x1f\x8b\x08 this is not gzip, 123\0\0".to_vec());
    payloads.extend(TOOLS.iter().filter_map(|(kind, command)| compress(*kind, command, &text(5000))));
    for payload in payloads {
        let kernel = open(&directory, &bzimage(&payload), None).unwrap();
        assert!(matches!(entry(&kernel), Protocol::BzImage { entry: GuestAddress(0x100_0200), .. }));
    }
}

#[test]
fn a_payload_larger_than_any_kernel_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(&directory, &bzimage(b"\x1f\x8b\x08 enormous \xff\xff\xff\x7f"), None).unwrap_err();
    assert!(matches!(error, Error::PayloadSize { size_mib: 2048, .. }), "{error}");
}

#[test]
fn the_cache_saves_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let Some(payload) = compress(TOOLS[0].0, TOOLS[0].1, &FakeElf::linux().build()) else { return };
    for damage in [false, true, false] {
        let kernel = open(&directory, &bzimage(&payload), Some(&cache)).unwrap();
        assert!(matches!(kernel.source, Source::File(..)), "not kept in memory");
        assert_eq!(entry(&kernel), PVH_ENTRY);
        let elves = || fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        let elf = elves().find(|path| path.extension().is_some_and(|extension| extension == "elf")).unwrap();
        if damage {
            fs::write(elf, "damaged").unwrap();
        }
    }
}

#[test]
fn a_cache_that_does_not_work_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let Some(payload) = compress(TOOLS[0].0, TOOLS[0].1, &FakeElf::linux().build()) else { return };
    let kernel = open(&directory, &bzimage(&payload), Some(Path::new("/dev/null/cache"))).unwrap();
    assert_eq!(entry(&kernel), PVH_ENTRY);
}

#[test]
fn says_what_it_is_instead() {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let mut ext4 = vec![0; 2048];
    ext4[0x438..0x43a].copy_from_slice(b"\x53\xef");
    let mut sector = vec![0xfa; 512];
    sector[510..].copy_from_slice(b"\x55\xaa");
    for (contents, looks) in [
        (&b""[..], "an empty file"),
        (&[0; 100], "a file of zeroes"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 disk image"),
        (b"070701", "a cpio archive, such as an initial RAM disk"),
        (&tar, "a tar archive"),
        (&ext4, "an ext4 image"),
        (&sector, "a disk image or a boot sector"),
        (b"\x01\x02\x03", "a file of a kind that rvmm does not know"),
    ] {
        let error = open(&directory, contents, None).unwrap_err();
        assert_eq!(error.to_string(), format!("It is not a kernel but {looks}"));
    }
    for (magic, name) in [(b"ARM\x64", "AArch64"), (b"RSC\x05", "RISC-V")] {
        let error = open(&directory, &[&[0; 56][..], magic].concat(), None).unwrap_err();
        assert_eq!(error.to_string(), format!("It is for {name}, this machine is x86_64"));
    }
}

#[test]
fn what_does_not_open_is_named() {
    for path in ["/nonexistent/kernel", "/", "/dev/null"] {
        let error = Kernel::open(Path::new(path), None).unwrap_err();
        assert_eq!(error.to_string(), format!("Cannot boot kernel {path:?}"));
        assert!(matches!(error, x86_64::Error::Kernel { source: Error::Open(_), .. }));
    }
}

#[test]
fn a_file_that_shrinks_meanwhile_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = open(&directory, &FakeElf::linux().build(), None).unwrap();
    fs::write(directory.path().join("kernel"), "gone").unwrap();
    let error = kernel.load(&memory(), Preference::Pvh).unwrap_err();
    assert!(matches!(error, x86_64::Error::Kernel { source: Error::Read(_), .. }), "{error}");
}
