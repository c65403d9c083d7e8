//! Wrong input: nothing is started, one line on standard error says what is wrong, and the status is 125.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::common::bare::{guest, kernel};
use crate::common::host;
use crate::common::machine::{Ended, Machine};
use crate::need;

/// Files of one test.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Files(TempDir::new().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).expect("a file");
        self.path(name)
    }

    fn pipe(&self, name: &str) -> PathBuf {
        host::run("mkfifo", &[&self.path(name).to_string_lossy()]);
        self.path(name)
    }
}

fn boot(kernel: &Path) -> Ended {
    Machine::rvmm().option("--kernel", kernel).option("--net", "none").run()
}

/// A machine that would boot, but for these options.
fn with(options: &[&str]) -> Ended {
    let machine = Machine::rvmm().option("--kernel", kernel()).option("--net", "none");
    options.iter().fold(machine, Machine::arg).run()
}

#[test]
fn no_kernel() {
    Machine::rvmm().run().refused(&["--kernel FILE", "--config FILE"]);
    Machine::command_line(&["--kernel"]).run().refused(&["--kernel"]);
}

#[test]
fn files_that_are_no_kernel() {
    need!(host::kvm());
    let files = Files::new();
    boot(&files.path("none")).refused(&["none", "No such file"]);
    boot(files.0.path()).refused(&["directory"]);
    boot(&files.file("empty", "")).refused(&["not a kernel", "empty"]);
    boot(&files.file("text", "hello\n")).refused(&["not a kernel", "text"]);
    boot(&files.file("script", "#!/bin/sh\n")).refused(&["not a kernel"]);
    boot(&files.file("zeroes", [0; 100_000])).refused(&["not a kernel"]);
    boot(Path::new("/dev/zero")).refused(&["not a regular file"]);
    boot(Path::new(env!("CARGO_BIN_EXE_rvmm"))).refused(&["not a kernel", "a program"]);
}

/// The end of the last byte that an ELF file loads (ELF-64, program headers).
fn loaded_end(elf: &[u8]) -> usize {
    let number = |at: usize, size: usize| {
        let bytes = elf[at..at + size].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let headers = (0..count).map(|index| table + index * size);
    headers
        .filter(|&at| number(at, 4) == 1)
        .map(|at| number(at + 8, 8) + number(at + 32, 8))
        .max()
        .unwrap_or(0)
}

#[test]
fn kernels_that_are_cut_off() {
    need!(host::kvm());
    let files = Files::new();
    let whole = fs::read(kernel()).expect("the guest");
    let end = loaded_end(&whole);
    boot(&files.file("whole", &whole[..end])).said("OK hello");
    for length in [1, 3, 4, 5, 16, 17, 20, 63, 64, 65, 100, 120, 176, 500, 4096, end / 2, end - 1] {
        boot(&files.file("cut", &whole[..length])).refused(&[]);
    }
}

#[test]
fn distribution_kernels_that_are_cut_off() {
    need!(host::kvm());
    let Ok(whole) = fs::read(host::STOCK_KERNEL) else {
        return crate::common::skip(&format!("no {}: make guest", host::STOCK_KERNEL));
    };
    let files = Files::new();
    for length in [0x1f1, 0x202, 0x205, 0x250, 0x280, 1024, 20_000, whole.len() / 2] {
        boot(&files.file("cut", &whole[..length])).refused(&[]);
    }
}

#[test]
fn kernels_for_other_machines() {
    need!(host::kvm());
    let files = Files::new();
    let changed = |name: &str, changes: &[(usize, u8)]| {
        let mut elf = fs::read(kernel()).expect("the guest");
        changes.iter().for_each(|&(at, byte)| elf[at] = byte);
        boot(&files.file(name, elf))
    };
    changed("aarch64", &[(18, 183)]).refused(&["x86_64", "aarch64"]);
    changed("riscv", &[(18, 243)]).refused(&["x86_64"]);
    changed("class32", &[(4, 1), (18, 3)]).refused(&["x86_64"]);
    changed("big-endian", &[(5, 2)]).refused(&[]);
    // What an arm64 Image begins with.
    let mut image = vec![0; 4096];
    image[..2].copy_from_slice(b"MZ");
    image[56..60].copy_from_slice(b"ARM\x64");
    boot(&files.file("Image", image)).refused(&[]);
}

#[test]
fn initial_ram_disks() {
    need!(host::kvm());
    let files = Files::new();
    let huge = files.path("huge");
    fs::File::create(&huge).and_then(|file| file.set_len(1 << 30)).expect("a file");
    with(&["--initrd", "/nonexistent"]).refused(&["/nonexistent", "No such file"]);
    with(&["--initrd", "/tmp"]).refused(&["directory"]);
    with(&["--initrd", &huge.to_string_lossy()]).refused(&["1024 MiB", "memory"]);
}

#[test]
fn disks() {
    need!(host::kvm());
    let files = Files::new();
    let disk = |path: &Path, options: &str| with(&["--disk", &format!("{}{options}", path.display())]);
    disk(&files.path("none"), "").refused(&["does not exist", "truncate"]);
    disk(files.0.path(), "").refused(&["directory"]);
    disk(&files.file("empty", ""), "").refused(&["empty"]);
    disk(&files.file("odd", [1; 1000]), "").refused(&["1000 bytes", "multiple of 512"]);
    disk(Path::new("/dev/null"), "").refused(&["character device"]);
    let good = files.file("good", [0; 512]);
    disk(&good, ",redonly").refused(&["redonly", "did you mean `ro`"]);
    disk(&good, ",formt=raw").refused(&["did you mean `format`"]);
    disk(&good, ",serial=0123456789abcdefghijk").refused(&["0123456789abcdefghijk", "20 bytes"]);
    disk(&good, ",id=a-name-of-more-than-20-bytes").refused(&["20 bytes", "serial=TEXT"]);
    disk(&good, ",format=vmdk").refused(&["vmdk", "raw or qcow2"]);
    disk(&good, ",format=qcow2").refused(&["good"]);
    disk(&good, ",cache=none").refused(&["writeback"]);
    // Else a guest could write a header into its raw disk, and find an image of its own making at the next start.
    let misnamed = files.file("raw.qcow2", [0; 512]);
    disk(&misnamed, "").refused(&["raw.qcow2", "format=raw"]);
    guest("hello").disk(&misnamed, ",format=raw").run().passed("hello");
    disk(Path::new(""), "").refused(&["missing"]);
    disk(Path::new(""), ",ro").refused(&["missing"]);
}

#[test]
fn qcow2_disks_that_are_damaged() {
    need!(host::kvm(), host::program("qemu-img").map(drop));
    let files = Files::new();
    let (path, base) = (files.path("disk.qcow2"), files.file("base", [0; 512]));
    let (text, base) = (path.to_string_lossy(), base.to_string_lossy());
    host::run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &text, "1M"]);
    let whole = fs::read(&path).expect("a disk");
    for length in [4, 71, 104, 512, 65_536] {
        fs::write(&path, &whole[..length]).expect("a disk");
        with(&["--disk", &text]).refused(&["disk.qcow2"]);
    }
    fs::write(&path, &whole).expect("a disk");
    fs::remove_file(base.as_ref()).expect("a base");
    with(&["--disk", &text]).refused(&["base", "cannot be found"]);
}

#[test]
fn a_disk_that_is_in_use() {
    need!(host::kvm());
    let files = Files::new();
    let path = files.file("disk", [0; 512]);
    let text = path.to_string_lossy();
    let (writable, read_only) = (text.as_ref(), format!("{text},ro"));
    with(&["--disk", writable, "--disk", writable]).refused(&["vdb", "in use", "itself"]);
    let named = format!("{text},ro,id=vdb");
    with(&["--disk", &named, "--disk", &read_only]).refused(&["Two disks", "vdb", "id=NAME"]);

    let writer = guest("hello end=hlt").disk(&path, "").start();
    writer.says("OK hello");
    let holder = format!("process {} (rvmm)", writer.pid());
    with(&["--disk", writable]).refused(&["in use", &holder]);
    with(&["--disk", &read_only]).refused(&["in use", &holder]);
    drop(writer);

    let reader = guest("hello end=hlt").disk(&path, ",ro").start();
    reader.says("OK hello");
    with(&["--disk", writable]).refused(&["in use"]);
    guest("hello").disk(&path, ",ro").run().passed("hello");
}

#[test]
fn cpus_and_memory() {
    need!(host::kvm());
    with(&["--cpus", "0"]).refused(&["vCPUs", "not 0"]);
    with(&["--cpus", "100000"]).refused(&["vCPUs", "not 100000"]);
    with(&["--cpus", "two"]).refused(&["two"]);
    with(&["--cpus", "-1"]).refused(&["-1"]);
    with(&["--memory", "0"]).refused(&["512M"]);
    with(&["--memory", "lots"]).refused(&["lots", "512M"]);
    with(&["--memory", "512K"]).refused(&["512M"]);
    with(&["--memory", "1M"]).refused(&["does not fit", "at least 2 MiB"]);
    with(&["--memory", "64T"]).refused(&["1M to 8T"]);
    // More than a process may have.
    let limited = Machine::rvmm().soft_limit(libc::RLIMIT_AS, 1 << 30).option("--kernel", kernel());
    limited.option("--net", "none").memory("8T").run().refused(&["Cannot map 8388608 MiB", "guest memory"]);
    with(&["--memory", "99999999999999999999G"]).refused(&["512M"]);
    with(&["--cpu-mask", "ax512f"]).refused(&["ax512f", "avx512f"]);
    // More than any machine that this runs on has.
    with(&["--huge-pages", "--memory", "64G"]).refused(&["huge pages", "nr_hugepages"]);
}

#[test]
fn more_memory_than_the_host_has() {
    need!(host::kvm());
    let ended = guest("hello").memory("4000G").run();
    ended.passed("hello");
    assert!(ended.err.contains("the machine may use 4096000 MiB of memory, and the host has"), "{ended}");
}

#[test]
fn networks() {
    need!(host::kvm());
    let net = |value: &str| Machine::rvmm().option("--kernel", kernel()).option("--net", value).run();
    net("usr").refused(&["usr", "user, tap=NAME or none"]);
    net("user,publsh=80:80").refused(&["did you mean `publish`"]);
    net("user,publish=80").refused(&["HOST_PORT:GUEST_PORT"]);
    net("user,mac=01:00:00:00:00:00").refused(&["02:00:00:00:00:01"]);
    net("user,mac=02").refused(&["02:00:00:00:00:01"]);
    net("tap=").refused(&["tap=NAME"]);
    net("tap=a/b").refused(&["a/b"]);
    net("tap=a-name-that-is-too-long").refused(&["1 to 15 bytes"]);
    net("none,mac=02:00:00:00:00:01").refused(&["`none` takes no options"]);
    net("").refused(&["user, tap=NAME or none"]);
}

#[test]
fn consoles() {
    need!(host::kvm());
    let files = Files::new();
    with(&["--console", "studio"]).refused(&["did you mean `stdio`"]);
    with(&["--console", "file="]).refused(&["a path"]);
    with(&["--console", "file=/nonexistent/console"]).refused(&["/nonexistent/console"]);
    with(&["--console", "socket=/nonexistent/console"]).refused(&["/nonexistent/console"]);
    let plain = files.file("plain", "");
    with(&["--console", &format!("socket={}", plain.display())]).refused(&["plain"]);
    let pipe = files.pipe("pipe");
    with(&["--console", &format!("file={}", pipe.display())]).refused(&["pipe", "nobody reads"]);
}

#[test]
fn pipes_that_nobody_uses() {
    need!(host::kvm());
    let files = Files::new();
    let pipe = files.pipe("pipe").display().to_string();
    with(&["--disk", &pipe]).refused(&["is a pipe"]);
    with(&["--initrd", &pipe]).refused(&["not a regular file"]);
    let ended = guest("rng").option("--rng", &pipe).run();
    assert!(ended.passed("rng").err.contains("has no random bytes"), "{ended}");
}

#[test]
fn command_lines() {
    need!(host::kvm());
    Machine::command_line(&["--kernal", "x"]).run().refused(&["--kernal", "'--kernel'"]);
    Machine::command_line(&["rnu"]).run().refused(&["rnu"]);
    with(&["--cmdline", &"x".repeat(5000)]).refused(&["command line", "2047"]);
    with(&["--cmdline", "a", "--cmdline-only", "b"]).refused(&["--cmdline-only"]);
    with(&["--name", "a/b"]).refused(&["a/b", "letters"]);
    with(&["--stop-timeout", "soon"]).refused(&["soon", "number of seconds"]);
    with(&["--rng", "/nonexistent"]).refused(&["/nonexistent"]);
    with(&["--rng", "/tmp"]).refused(&["/tmp", "directory"]);
    with(&["--log-file", "/nonexistent/log"]).refused(&["/nonexistent/log"]);
    with(&["--log-level", "loud"]).refused(&["loud", "debug or trace"]);
}

#[test]
fn more_devices_than_fit() {
    need!(host::kvm());
    let files = Files::new();
    let disks: Vec<_> = (0..30).map(|n| files.file(&format!("disk{n}"), [0; 512])).collect();
    let machine = Machine::rvmm().option("--kernel", kernel()).option("--net", "none");
    disks.iter().fold(machine, |machine, disk| machine.disk(disk, "")).run().refused(&["devices"]);
}

#[test]
fn a_runtime_directory_with_a_long_path() {
    need!(host::kvm());
    let files = Files::new();
    let long = files.path(&"x".repeat(120)).to_string_lossy().into_owned();
    with(&["--runtime-dir", &long]).refused(&["api.sock", "at most 107 bytes"]);
}

#[test]
fn a_name_that_is_taken() {
    need!(host::kvm());
    let first = guest("hello end=hlt").option("--name", "web").start();
    first.says("OK hello");
    guest("hello").option("--name", "web").beside(&first).run().refused(&["web"]);
    first.command(&["stop", "wbe"]).failed(1, &["wbe", "did you mean `web`"]);
}

#[test]
fn programs_read_json() {
    let ended = Machine::command_line(&["--json", "--kernel", "/nonexistent"]).run();
    let error: serde_json::Value = serde_json::from_str(&ended.err).expect("JSON");
    assert_eq!(error["status"], 125);
    assert!(error["error"].is_string());
    assert_eq!((ended.status, ended.err.lines().count()), (125, 1));
}
