//! What Linux writes to disks is what the host finds there, whatever happens in between.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::host;
use crate::common::linux::{NO_ROOT, guest, made, root_disk};
use crate::common::noise::noise;
use crate::need;

const MIB: usize = 1 << 20;

fn scratch() -> TempDir {
    TempDir::new().expect("a directory")
}

fn disk(directory: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).expect("a disk");
    path
}

/// A qcow2 image that has nothing yet but what the root disk of `make guest` has.
fn over_the_root_disk(directory: &TempDir) -> PathBuf {
    let (image, base) = (directory.path().join("root.qcow2"), made("rootfs.ext4"));
    let (image_text, base_text) = (image.to_string_lossy(), base.to_string_lossy());
    host::run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base_text, &image_text]);
    image
}

/// The options that let a machine open it: what it stands on is in another directory.
fn on_the_root_disk() -> String {
    format!(",backing={}", made("rootfs.ext4").display())
}

/// The first boot copies 1, 16 and 100 MiB from one disk to the other and restarts; the second reads them again.
const COPY_AND_RESTART: &str = "sums() { for n in 1 16 100; do dd if=/dev/vda bs=1M skip=$((n * 2)) count=$n 2>/dev/null | md5sum; done >$1; cat $1; }
dd if=/dev/vda bs=1M count=1 2>/dev/null | grep -q copied && { echo again; sums /tmp/b; exit; }
dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync && exit 1
mount -o rw /dev/vdb /mnt && exit 1
for n in 1 16 100; do dd if=/dev/vdb of=/dev/vda bs=${n}M skip=0 seek=2 count=1 conv=notrunc || exit 1; done
for n in 1 16 100; do dd if=/dev/vdb bs=1M count=$n 2>/dev/null | md5sum; done >/tmp/s
sync; echo 3 >/proc/sys/vm/drop_caches
sums /tmp/a; cmp /tmp/a /tmp/s || exit 1
echo copied | dd of=/dev/vda conv=notrunc,fsync
reboot -f";

#[test]
fn copies_are_whole_after_a_flush_a_restart_and_power_off() {
    need!(host::linux());
    let directory = scratch();
    let source = noise(1, 100 * MIB);
    let (from, to) = (disk(&directory, "from", &source), directory.path().join("to"));
    fs::File::create(&to).and_then(|file| file.set_len(400 * MIB as u64)).expect("a disk");
    let machine = guest(COPY_AND_RESTART).memory("512M").words(NO_ROOT).disk(&to, "").disk(&from, ",ro");
    let ended = machine.run();
    ended.succeeded().said("again");
    let sums: Vec<_> = ended.out.lines().filter(|line| line.trim_end().ends_with("  -")).collect();
    assert_eq!((sums.len(), &sums[..3]), (6, &sums[3..]), "{ended}");

    let written = fs::read(&to).expect("a disk");
    for (mib, at) in [(1, 2), (16, 32), (100, 200)] {
        let found = &written[at * MIB..(at + mib) * MIB];
        assert!(found == &source[..mib * MIB], "{mib} MiB are on the disk");
    }
    assert!(fs::read(&from).expect("a disk") == source, "the other disk is as it was");
}

/// Uses a file system, then gives its space back, and that of another disk.
const USE_AND_DISCARD: &str = "set -e
blkdiscard -o 16777216 -l 33554432 /dev/vdb
dd if=/dev/vdb bs=1M skip=16 count=32 2>/dev/null | tr -d '\\0' | wc -c
dd if=/dev/urandom of=/root/a bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/root/b bs=1M count=8 2>/dev/null
sync; rm /root/b; sync; fstrim -v /
echo text >/root/c; mkdir -p /root/d/e; ln -s c /root/l; sync
mount -o remount,ro /
echo sum $(md5sum </dev/vda)";

#[test]
fn qcow2_over_a_backing_file_and_discards() {
    need!(host::linux(), host::program("qemu-img").map(drop));
    let directory = scratch();
    let (image, flat) = (over_the_root_disk(&directory), directory.path().join("flat"));
    let (image_text, flat_text) = (image.to_string_lossy(), flat.to_string_lossy());
    let full = disk(&directory, "full", &vec![0xa5; 64 * MIB]);
    let before = fs::metadata(&full).expect("a disk").blocks();

    let machine = guest(USE_AND_DISCARD).disk(&image, &on_the_root_disk()).disk(&full, "");
    let ended = machine.run();
    ended.succeeded();
    let freed = before - fs::metadata(&full).expect("a disk").blocks();
    assert_eq!(freed * 512, 32 << 20, "bytes that the host has back");

    host::run("qemu-img", &["check", "-q", &image_text]);
    host::run("qemu-img", &["convert", "-O", "raw", &image_text, &flat_text]);
    let sum = host::run("md5sum", &[&flat_text]);
    assert!(ended.value("sum ").starts_with(&sum[..32]), "{sum} is not the guest's\n{ended}");
    host::run("e2fsck", &["-fn", &flat_text]);
    assert_eq!(host::run("debugfs", &["-R", "cat /root/c", &flat_text]), "text\n");
}

/// Writes files for ever, each of them numbered and on the disk before the next.
const WRITE_FOR_EVER: &str = "i=0; while :; do i=$((i + 1))
dd if=/dev/urandom of=/root/junk$((i % 8)) bs=64k count=$((i % 8 + 1)) 2>/dev/null
echo content $i >/root/file$i; sync; echo written $i; done";

#[test]
fn a_killed_machine_leaves_a_file_system_that_is_whole() {
    need!(host::linux(), host::program("e2fsck").map(drop), host::program("debugfs").map(drop));
    for (engine, files) in [("uring", 20), ("sync", 7)] {
        let directory = scratch();
        let disk = root_disk(directory.path());
        killed_after(files, &disk, &format!(",engine={engine}"));
        whole_with(files, &disk);
    }
}

#[test]
fn a_killed_machine_leaves_a_qcow2_image_that_is_whole() {
    need!(host::linux(), host::program("qemu-img").map(drop));
    need!(host::program("e2fsck").map(drop), host::program("debugfs").map(drop));
    let directory = scratch();
    let (image, flat) = (over_the_root_disk(&directory), directory.path().join("flat"));
    killed_after(12, &image, &on_the_root_disk());
    let checked = Command::new("qemu-img").arg("check").arg(&image).output().expect("qemu-img");
    // 3: clusters that nothing refers to, which harm nobody.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
    host::run("qemu-img", &["convert", "-O", "raw", &image.to_string_lossy(), &flat.to_string_lossy()]);
    whole_with(12, &flat);
}

/// Kills a machine that writes to its root disk when it has said that so many files are there.
fn killed_after(files: u32, disk: &Path, options: &str) {
    let machine = guest(WRITE_FOR_EVER).disk(disk, options).start();
    machine.says(&format!("written {files}\r"));
    machine.kill();
}

/// The file system on the disk needs nothing but its journal, and has as many files as were synced.
#[track_caller]
fn whole_with(files: u32, disk: &Path) {
    let text = disk.to_string_lossy();
    assert_eq!(repair(disk), 0, "the file system is whole but for its journal");
    host::run("e2fsck", &["-fn", &text]);
    for file in 1..=files {
        let content = host::run("debugfs", &["-R", &format!("cat /root/file{file}"), &text]);
        assert_eq!(content, format!("content {file}\n"), "what was synced is there");
    }
}

/// Replays the journal and sees to it that nothing else had to be done: e2fsck's status but for "was changed".
fn repair(disk: &Path) -> i32 {
    let e2fsck = host::program("e2fsck").expect("asked for");
    let replayed =
        Command::new(&e2fsck).args(["-p", "-E", "journal_only"]).arg(disk).output().expect("e2fsck");
    assert!(replayed.status.code().is_some_and(|status| status < 4), "{replayed:?}");
    let checked = Command::new(&e2fsck).arg("-fn").arg(disk).output().expect("e2fsck");
    let status = checked.status.code().unwrap_or(-1);
    if status != 0 {
        eprintln!("{}", String::from_utf8_lossy(&checked.stdout));
    }
    status
}
