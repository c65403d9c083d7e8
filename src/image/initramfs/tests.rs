//! Archives by their bytes, and by what cpio makes of them; modules made here, and those of this host's kernels.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

/// An ELF file with nothing but a .modinfo section.
fn module(lines: &[&str]) -> Vec<u8> {
    let info: Vec<u8> = lines.iter().flat_map(|line| line.bytes().chain([0])).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf.extend(&info);
    elf.extend(names);
    let table = elf.len() as u64;
    elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    for (name, start, len) in [(0u32, 0, 0), (1, 64, info.len()), (10, 64 + info.len(), names.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        elf.extend(header);
    }
    elf
}

fn of(depends: &str) -> Vec<u8> {
    module(&["license=GPL", &format!("depends={depends}"), "vermagic=6.1.0-test SMP mod_unload"])
}

fn put(directory: &Path, name: &str, bytes: &[u8]) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A directory as `/lib/modules/6.1.0-test`, with every compression that distributions use.
fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    put(path, "kernel/drivers/virtio/virtio_mmio.ko", &of(""));
    put(path, "kernel/drivers/net/virtio_net.ko.gz", &gzip(&of("net-failover")));
    put(path, "kernel/net/net_failover.ko.zst", &zstd::encode_all(&of("failover")[..], 1).unwrap());
    put(path, "kernel/net/failover.ko", &of(""));
    put(path, "kernel/fs/overlay.ko", &of(""));
    put(path, "modules.builtin", b"kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n");
    directory
}

#[test]
fn modules_come_with_what_they_need_in_order() {
    let directory = tree();
    let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
    let made = build(Some(&modules)).unwrap();
    assert_eq!(made.modules, ["virtio_mmio", "failover", "net_failover", "virtio_net", "overlay"]);
    assert_eq!(made.missing, [""; 0]);
    let text = String::from_utf8_lossy(&made.bytes);
    assert!(
        text.contains("always virtio_mmio.ko\nvirtio:0x0001 failover.ko net_failover.ko virtio_net.ko\n")
    );
    assert_eq!(build(Some(&modules)).unwrap().bytes, made.bytes, "the same bytes");
    fs::write(directory.path().join("modules.builtin"), "").unwrap();
    let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
    assert_eq!(build(Some(&modules)).unwrap().missing, ["virtio_blk", "ext4"]);
    assert!(build(None).unwrap().modules.is_empty());
}

#[test]
fn modules_that_cannot_be_are_refused() {
    for (bytes, reason) in [
        (module(&["vermagic=5.10.0 SMP", "depends="]), "is of kernel 5.10.0, and not of 6.1.0-test"),
        (of("nowhere"), "Module nowhere is not valid: it is needed, and not there"),
        (b"\x7fELF but not for long".to_vec(), "it is no module"),
        (gzip(b"text"), "it is no module"),
        (vec![], "it is no module"),
    ] {
        let directory = tree();
        put(directory.path(), "virtio_rng.ko", &bytes);
        let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
        let error = build(Some(&modules)).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // Two that need each other are no reason to go round for ever.
    let directory = tree();
    put(directory.path(), "virtio_rng.ko", &of("rng_core"));
    put(directory.path(), "rng_core.ko", &of("virtio-rng"));
    let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
    build(Some(&modules)).unwrap();
    // Damaged anywhere in its header or tables, a module is refused or taken, and nothing else happens.
    let good = of("failover");
    for at in (0..64).chain(good.len() - 192..good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let directory = tree();
        put(directory.path(), "virtio_rng.ko", &bad);
        let _ = build(Some(&Modules::open(directory.path(), "6.1.0-test").unwrap()));
    }
    // What is small and becomes large.
    let directory = tree();
    put(directory.path(), "virtio_rng.ko.gz", &gzip(&vec![0; 65 << 20]));
    let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
    assert!(matches!(build(Some(&modules)), Err(Error::TooLarge { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(Modules::open(empty.path(), "x").unwrap_err().to_string().contains("no kernel modules"));
    assert!(Modules::open(Path::new("/nonexistent"), "x").is_err());
}

#[test]
fn cpio_reads_both_archives() {
    if Command::new("cpio").arg("--version").output().is_err() {
        return crate::testing::skip("there is no cpio");
    }
    let directory = tree();
    let modules = Modules::open(directory.path(), "6.1.0-test").unwrap();
    for (archive, wanted) in [
        (
            build(Some(&modules)).unwrap().bytes,
            "crw------- 1 root root 5, 1 dev/console|-rwxr-xr-x 1 root root ",
        ),
        (process(b"{\"Cmd\":[]}"), "-rw------- 1 root root 10 "),
    ] {
        assert_eq!(archive.len() % 512, 0);
        let mut cpio = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let plain = squeezed.replace("Jan 1 1970 ", "");
        assert!(output.status.success() && wanted.split('|').all(|line| plain.contains(line)), "{text}");
    }
}

#[test]
fn the_init_is_a_static_program() {
    assert!(INIT.starts_with(b"\x7fELF\x02\x01"));
    let programs = u64::from_le_bytes(INIT[0x20..0x28].try_into().unwrap()) as usize;
    let count = usize::from(INIT[0x38]);
    const INTERPRETER: [u8; 4] = [3, 0, 0, 0];
    assert!((0..count).all(|index| INIT[programs + 56 * index..][..4] != INTERPRETER));
}
