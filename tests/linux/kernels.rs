//! Stock kernels come to user space, with all that the machine has.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::linux::{guest, guest_with, kernel, made, root_disk};
use crate::common::machine::{Ended, Machine};
use crate::common::{host, skip};
use crate::need;

const SHOW: &str = "echo kernel $(uname -r); echo cpus $(nproc); echo devices $(ls /sys/bus/virtio/devices | wc -l)
echo topology $(cat /sys/devices/system/cpu/cpu*/topology/core_id); dmesg | grep -v srso | grep -iE 'bug:|oops|warning:|call trace'; true";

fn version(kernel: &Path) -> String {
    let file = kernel.canonicalize().expect("a kernel");
    let name = file.file_name().expect("a name").to_string_lossy();
    name.trim_start_matches("vmlinuz-").into()
}

#[track_caller]
fn boots(machine: Machine, cpus: u32, kernel: &Path) -> Ended {
    let ended = machine.cpus(cpus).run();
    ended.succeeded();
    assert_eq!(ended.value("cpus "), cpus.to_string());
    assert_eq!(ended.value("kernel "), version(kernel));
    for trouble in ["BUG:", "Oops", "WARNING:", "Call Trace"] {
        ended.did_not_say(trouble);
    }
    ended
}

#[test]
fn the_stock_kernel_with_one_cpu() {
    need!(host::linux());
    // It is quiet: the first thing that it says is what the script says.
    let ended = boots(guest(SHOW), 1, &kernel());
    assert!(ended.out.starts_with("kernel "), "{ended}");
}

#[test]
fn the_stock_kernel_with_two_cpus() {
    need!(host::linux());
    assert_eq!(boots(guest(SHOW), 2, &kernel()).value("topology "), "0 1");
}

#[test]
fn the_elf_kernel_inside_the_stock_kernel() {
    need!(host::linux());
    let directory = TempDir::new().expect("a directory");
    let elf = directory.path().join("vmlinux");
    let script = "set -e; . guest/lib.sh; vmlinux \"$1\" >\"$2\"";
    let status = Command::new("bash")
        .args(["-c", script, "guest/lib.sh"])
        .args([&kernel(), &elf])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(status.expect("bash").success(), "the kernel is taken apart");
    for cpus in [1, 2] {
        boots(guest_with(&elf, &made("initrd.img"), SHOW), cpus, &kernel());
    }
}

#[test]
fn the_guest_has_only_the_features_that_the_mask_leaves() {
    need!(host::linux());
    let script = "grep -owE 'cx16|sse4_2|x2apic' /proc/cpuinfo; echo seen";
    let ended = guest(script).option("--cpu-mask", "sse4_2").run();
    ended.succeeded().said("cx16").said("x2apic").did_not_say("sse4_2");
}

#[test]
fn a_newer_stock_kernel() {
    need!(host::linux());
    let (kernel, initrd) = (made("vmlinuz-6.12"), made("initrd-6.12.img"));
    if !kernel.exists() {
        return skip("the distribution has no 6.12 kernel here");
    }
    boots(guest_with(&kernel, &initrd, SHOW), 2, &kernel);
}

#[test]
fn the_stock_kernel_with_the_initramfs_of_the_distribution() {
    need!(host::linux());
    let initrd = made("initrd-stock.img");
    if !fs::metadata(&initrd).is_ok_and(|file| file.len() > 0) {
        return skip("guest/mkinitramfs has made no initramfs here");
    }
    let directory = TempDir::new().expect("a directory");
    let disk = root_disk(directory.path());
    boots(guest_with(&kernel(), &initrd, SHOW).disk(&disk, ""), 1, &kernel());
}

#[test]
fn memory_above_4_gib() {
    need!(host::linux());
    // Of the guest's memory only what it uses is there, so the host need not have it.
    let script = "grep MemTotal /proc/meminfo; grep -i '100000000-.*System RAM' /proc/iomem
dd if=/dev/zero of=/tmp/zeroes bs=1M count=64 2>/dev/null; md5sum </tmp/zeroes";
    let ended = guest(script).memory("5G").run();
    ended.succeeded().said("100000000-17fffffff : System RAM").said("7f614da9329cd3aebf59b91aadc30bf0");
    let total: u64 = ended.value("MemTotal:").trim_end_matches(" kB").trim().parse().expect("a number");
    assert!(total > 4800 << 10, "{total} KiB of memory");
}
