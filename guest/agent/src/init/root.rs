//! File systems: the kernel's own, the root disk, which takes the initramfs's place, and others below it (`mount(2)`, `chroot(2)`).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent::container::Mount;

use super::complain;
use crate::sys::{self, Errno, Result, c_text, call, nr, open};
use crate::tree;

const READ_ONLY: usize = 1;
const NO_SUID: usize = 2;
const NO_DEVICES: usize = 4;
const NO_EXEC: usize = 8;
const REMOUNT: usize = 32;
const BIND: usize = 4096;
const MOVE: usize = 8192;

/// The kernel refuses to write.
const READ_ONLY_ERROR: Errno = Errno(30);
const ACCESS: Errno = Errno(13);

/// How long a disk may take to appear, in milliseconds.
const PATIENCE: u64 = 5000;

/// The place of the root disk before it is the root.
const NEW_ROOT: &str = "/root";

/// Mounts a file system.
pub fn mount(source: &str, target: &str, kind: &str, flags: usize, options: &str) -> Result {
    let (source, target) = (c_text(source)?, c_text(target)?);
    let (kind, options) = (c_text(kind)?, c_text(options)?);
    let pointer = |text: &Vec<u8>| text.as_ptr() as usize;
    // SAFETY: the kernel reads four texts, which have ends.
    unsafe {
        call(nr::MOUNT, [pointer(&source), pointer(&target), pointer(&kind), flags, pointer(&options), 0])
    }
    .map(drop)
}

/// Puts a file or directory in a second place.
pub fn bind(from: &str, to: &str) -> Result {
    mount(from, to, "", BIND, "")
}

/// Takes a file system away; `lazily`, when nobody uses it any more.
pub fn unmount(target: &str, lazily: bool) -> Result {
    let target = c_text(target)?;
    // SAFETY: the kernel reads one text, which has an end.
    unsafe { call(nr::UMOUNT2, [target.as_ptr() as usize, usize::from(lazily) << 1, 0, 0, 0, 0]) }.map(drop)
}

/// Mounts `/dev`, `/proc` and `/sys`.
pub fn kernel_file_systems(below: &str) {
    for (path, kind, flags) in [
        ("/dev", "devtmpfs", NO_SUID),
        ("/proc", "proc", NO_SUID | NO_DEVICES | NO_EXEC),
        ("/sys", "sysfs", NO_SUID | NO_DEVICES | NO_EXEC),
    ] {
        let path = format!("{below}{path}");
        let _ = tree::make_directory(&path, 0o755);
        if let Err(error) = mount(kind, &path, kind, flags, "") {
            complain(&format!("cannot mount {path}: {error}"));
        }
    }
}

/// Mounts the root disk and makes it the root. It is written to at first if it can be, so that mount points can be made.
pub fn enter(root: &Mount) -> core::result::Result<(), String> {
    await_device(&root.source)?;
    let _ = tree::make_directory(NEW_ROOT, 0o755);
    mount_disk(root, NEW_ROOT)?;
    for place in ["/dev", "/proc", "/sys"] {
        let to = format!("{NEW_ROOT}{place}");
        let _ = tree::make_directory(&to, 0o755);
        // Where the place cannot be made, the file system is mounted nowhere.
        let _ = mount(place, &to, "", MOVE, "");
    }
    let switch = || {
        sys::on_path(nr::CHDIR, NEW_ROOT)?;
        mount(".", "/", "", MOVE, "")?;
        sys::on_path(nr::CHROOT, ".")?;
        sys::on_path(nr::CHDIR, "/")
    };
    switch().map_err(|error| format!("cannot make {} the root: {error}", root.source))
}

/// Mounts a disk; one that cannot be written to is mounted for reading even if nobody said so.
fn mount_disk(disk: &Mount, to: &str) -> core::result::Result<(), String> {
    let result = match mount(&disk.source, to, &disk.kind, 0, "") {
        Err(READ_ONLY_ERROR | ACCESS) => mount(&disk.source, to, &disk.kind, READ_ONLY, ""),
        result => result,
    };
    result
        .map_err(|error| format!("cannot mount {} ({}) at {}: {error}", disk.source, disk.kind, disk.target))
}

/// Waits for a block device.
fn await_device(path: &str) -> core::result::Result<(), String> {
    let limit = sys::now(sys::Clock::Monotonic) + PATIENCE * 1_000_000;
    while !tree::exists(path) {
        if sys::now(sys::Clock::Monotonic) > limit {
            return Err(format!("there is no disk {path}"));
        }
        let _ = sys::poll(&mut [], Some(1));
    }
    Ok(())
}

/// Mounts all that a program expects to find, as far as its places are there or can be made.
pub fn furnish(read_only: bool) {
    // What was not moved because the image has no such directory.
    for path in ["/dev", "/proc", "/sys"] {
        if !tree::exists(path) {
            complain(&format!("the image has no {path}, and it cannot be made"));
        }
    }
    for (path, mode) in [("/dev/pts", 0o755), ("/dev/shm", 0o1777), ("/dev/mqueue", 0o1777), ("/run", 0o755)]
    {
        let _ = tree::make_directory(path, mode);
    }
    let secure = NO_SUID | NO_DEVICES | NO_EXEC;
    let _ = mount("devpts", "/dev/pts", "devpts", NO_SUID | NO_EXEC, "gid=5,mode=620,ptmxmode=666");
    let _ = mount("tmpfs", "/dev/shm", "tmpfs", NO_SUID | NO_DEVICES, "mode=1777");
    let _ = mount("mqueue", "/dev/mqueue", "mqueue", secure, "");
    let _ = mount("cgroup2", "/sys/fs/cgroup", "cgroup2", secure, "");
    for (target, name) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = tree::symlink(target, name);
    }
    if tree::make_directory("/tmp", 0o1777).is_ok() {
        let _ = tree::change_mode("/tmp", 0o1777);
    }
    // What an image has there it needs there. /tmp is on the disk, which is larger than memory, unless that is not written to.
    if tree::list("/run").is_empty() {
        let _ = mount("tmpfs", "/run", "tmpfs", NO_SUID | NO_DEVICES, "mode=755");
    }
    if read_only && tree::list("/tmp").is_empty() {
        let _ = mount("tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEVICES, "mode=1777");
    }
    // As Docker has it: the first ports are for every user, and so is ping.
    let _ = sys::write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0");
    let _ = sys::write_file("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647");
}

/// Mounts more disks.
pub fn mount_all(mounts: &[Mount]) -> core::result::Result<(), String> {
    for disk in mounts {
        await_device(&disk.source)?;
        make_directories(&disk.target)
            .map_err(|error| format!("cannot make the directory {}: {error}", disk.target))?;
        mount_disk(disk, &disk.target)?;
        if disk.read_only {
            let _ = mount("", &disk.target, "", REMOUNT | READ_ONLY, "");
        }
    }
    Ok(())
}

/// From now on nothing is written to the root.
pub fn seal() {
    let _ = mount("", "/", "", REMOUNT | READ_ONLY, "");
}

/// Makes a directory and those above it; what is there is fine.
pub fn make_directories(path: &str) -> Result {
    for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
        let _ = tree::make_directory(&path[..at], 0o755);
    }
    match tree::make_directory(path, 0o755) {
        // Not by itself a reason to complain: it may be a link to one.
        Err(Errno(17)) | Ok(()) => Ok(()),
        // A read-only file system says so even if the directory is there.
        Err(error) => match sys::Fd::open(path, open::READ | open::DIRECTORY, 0) {
            Ok(_) => Ok(()),
            Err(_) => Err(error),
        },
    }
}

/// Leaves the disks as if they were never in use.
pub fn leave(mounts: &[Mount]) {
    for disk in mounts.iter().rev() {
        if unmount(&disk.target, false).is_err() {
            let _ = mount("", &disk.target, "", REMOUNT | READ_ONLY, "");
        }
    }
    seal();
}
