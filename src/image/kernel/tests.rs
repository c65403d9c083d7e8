//! Kernels: their versions, names, and which is the default.

use std::io::Write;

use super::*;
use crate::image::initramfs;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The header of a boot image with a version.
fn boot_image(version: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x210];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x10u16.to_le_bytes());
    bytes.extend(version);
    bytes
}

#[test]
fn kernels_say_their_version() {
    let found = |bytes: &[u8]| version(&file(bytes)).unwrap();
    assert_eq!(found(&boot_image(b"6.1.0-48-cloud-amd64 (me@there) #1\0")).unwrap(), "6.1.0-48-cloud-amd64");
    for bad in [&b""[..], b"noend", b" 6.1 \0"] {
        assert_eq!(found(&boot_image(bad)), None);
    }
    let mut elf = b"\x7fELF".to_vec();
    elf.resize((1 << 20) - 6, b'x');
    elf.extend(b"Linux version %s (%s)\0Linux version 6.12.3+ (me@there) \n");
    assert_eq!(found(&elf).unwrap(), "6.12.3+");
    assert_eq!(found(b"\x7fELF without"), None);
    assert_eq!(found(b"text"), None);
    assert_eq!(name_of_version("6.12.3+"), "6.12.3_");
}

#[test]
fn kernels_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let initramfs = initramfs::build(None).unwrap();
    assert_eq!((store.kernels().unwrap(), store.default_kernel().unwrap()), (vec![], None));

    let add = |name: &str| store.add_kernel(name, &mut file(b"kernel one"), "6.1", &initramfs, "quiet");
    let one = add("one").unwrap();
    assert!(one.is_default && one.version == "6.1" && one.boot_args == "quiet");
    assert_eq!(std::fs::read(store.blob(&one.kernel.digest)).unwrap(), b"kernel one");
    assert_eq!(std::fs::read(store.blob(&one.initramfs.digest)).unwrap(), initramfs.bytes);
    let two = store.add_kernel("two", &mut file(b"kernel two"), "6.2", &initramfs, "").unwrap();
    assert!(!two.is_default);
    assert_eq!(store.images().unwrap(), vec![], "kernels are not listed as images");

    store.gc().unwrap();
    let mut lease = store.lease().unwrap();
    assert!(lease.hold(&two.image.digest).unwrap());
    assert!(store.set_default_kernel("two").unwrap().is_default);
    assert_eq!(store.default_kernel().unwrap().unwrap().name, "two");
    assert_eq!(store.remove_kernel("two").unwrap().unwrap().name, "one");
    store.gc().unwrap();
    assert!(store.has(&two.kernel.digest), "it is in use");
    drop(lease);
    store.gc().unwrap();
    assert!(!store.has(&two.kernel.digest));
    let error = store.kernel("oen").unwrap_err().to_string();
    assert_eq!(error, "There is no kernel `oen`, did you mean `one`?");
    assert_eq!(store.remove_kernel("one").unwrap(), None);
    assert!(store.gc().unwrap().blobs >= 4 && store.read_index().unwrap().manifests.is_empty());

    for bad in ["default", "", "a/b", "a:b", ".x", "a b"] {
        assert!(add(bad).is_err(), "{bad}");
    }
}
