//! Virtio devices, each with its whole way from the guest's driver to the host.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::common::bare::{guest, kernel};
use crate::common::eventually;
use crate::common::host;
use crate::common::machine::Machine;
use crate::common::world;
use crate::need;

/// Features that the guest's driver agrees on, in turn; the last one works without interrupts.
const DRIVERS: [&str; 5] = ["", "indirect", "event_idx", "indirect event_idx", "poll"];
const ENGINES: [&str; 2] = ["uring", "sync"];

/// Disks of one test.
struct Disks(TempDir);

impl Disks {
    fn new() -> Self {
        Disks(TempDir::new().expect("a directory"))
    }

    /// A disk of so many bytes, none of which is zero.
    fn raw(&self, name: &str, size: usize) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, vec![0xa5; size]).expect("a disk");
        path
    }

    fn qcow2(&self, name: &str, backing: Option<&Path>) -> PathBuf {
        let path = self.0.path().join(name);
        let text = path.to_string_lossy();
        match backing {
            None => host::run("qemu-img", &["create", "-q", "-f", "qcow2", &text, "1M"]),
            Some(backing) => {
                let backing = backing.to_string_lossy();
                host::run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &backing, &text])
            }
        };
        path
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a disk")
}

#[test]
fn raw_disks() {
    need!(host::kvm());
    let disks = Disks::new();
    for engine in ENGINES {
        for driver in DRIVERS {
            let disk = disks.raw("disk", 1 << 20);
            let test = format!("blk {driver} rounds=3");
            let ended = guest(&test).disk(&disk, &format!(",engine={engine},id=d-{engine}")).run();
            ended.passed("blk").said("blk: 2048 sectors\n").said(&format!("blk: id d-{engine}\n"));
        }
    }
}

#[test]
fn every_cache_mode() {
    need!(host::kvm());
    let disks = Disks::new();
    for cache in ["writeback", "writethrough", "unsafe"] {
        let disk = disks.raw("disk", 1 << 20);
        guest("blk").disk(&disk, &format!(",cache={cache},serial=0123456789abcdefghij")).run().passed("blk");
    }
}

#[test]
fn what_one_boot_wrote_another_reads() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    for (writer, reader) in [("uring", "sync"), ("sync", "uring")] {
        let write = guest("blk mode=write seed=7 first=100 sectors=64");
        write.disk(&disk, &format!(",engine={writer}")).run().passed("blk");
        let verify = guest("blk mode=verify seed=7 first=100 sectors=64");
        verify.disk(&disk, &format!(",ro,engine={reader}")).run().passed("blk").said("read-only");
        guest("blk mode=verify seed=8 first=100 sectors=64").disk(&disk, "").run().said("FAIL blk");
        let written = bytes(&disk);
        let outside = &written[..100 * 512];
        assert!(outside.iter().all(|byte| *byte == 0xa5), "nothing else is written");
        fs::write(&disk, vec![0xa5; 1 << 20]).expect("a disk");
    }
}

#[test]
fn discards_give_the_hosts_space_back() {
    need!(host::kvm());
    let disks = Disks::new();
    for engine in ENGINES {
        let disk = disks.raw("disk", 1 << 20);
        File::open(&disk).and_then(|file| file.sync_all()).expect("a disk");
        let before = fs::metadata(&disk).expect("a disk").blocks();
        guest("blk mode=discard first=64 sectors=64")
            .disk(&disk, &format!(",engine={engine}"))
            .run()
            .passed("blk");
        let after = fs::metadata(&disk).expect("a disk");
        assert_eq!(after.len(), 1 << 20);
        assert!(after.blocks() + 64 <= before, "{} blocks of {before}", after.blocks());
    }
}

#[test]
fn read_only_disks_stay_as_they_are() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    fs::set_permissions(&disk, std::os::unix::fs::PermissionsExt::from_mode(0o444)).expect("a disk");
    for engine in ENGINES {
        let ended = guest("blk").disk(&disk, &format!(",ro,engine={engine}")).run();
        ended.passed("blk").said("blk: 2048 sectors, read-only\n");
    }
    assert_eq!(bytes(&disk), vec![0xa5; 1 << 20]);
}

#[test]
fn the_smallest_disk_and_a_huge_one() {
    need!(host::kvm());
    let disks = Disks::new();
    let small = disks.raw("small", 512);
    guest("blk sectors=1").disk(&small, "").run().passed("blk").said("blk: 1 sectors\n");
    let huge = disks.0.path().join("huge");
    File::create(&huge).and_then(|file| file.set_len(4 << 40)).expect("a sparse file of 4 TiB");
    guest("blk sectors=64").disk(&huge, "").run().passed("blk").said("blk: 8589934592 sectors\n");
    let blocks = fs::metadata(&huge).expect("a disk").blocks();
    assert!(blocks < 2048, "it is still sparse: {blocks} blocks");
}

#[test]
fn several_disks_in_their_order() {
    need!(host::kvm());
    let disks = Disks::new();
    let all: Vec<_> = (1..=3).map(|n| disks.raw(&format!("disk{n}"), n << 20)).collect();
    for (slot, disk) in all.iter().enumerate() {
        let machine =
            all.iter().fold(guest(&format!("blk slot={slot}")), |machine, disk| machine.disk(disk, ""));
        let size = bytes(disk).len() / 512;
        machine.run().passed("blk").said(&format!("blk: {size} sectors\n"));
    }
}

#[test]
fn overlays_are_thrown_away() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    for driver in DRIVERS {
        guest(&format!("blk {driver} rounds=3")).disk(&disk, ",overlay").run().passed("blk");
        assert_eq!(bytes(&disk), vec![0xa5; 1 << 20], "the disk below stays as it is");
    }
    // What one machine writes, the next does not see.
    guest("blk mode=write seed=5").disk(&disk, ",overlay").run().passed("blk");
    guest("blk mode=verify seed=5").disk(&disk, ",overlay").run().said("FAIL blk");
    let left: Vec<_> = fs::read_dir(disks.0.path()).expect("a directory").collect();
    assert_eq!(left.len(), 1, "no overlay is left behind: {left:?}");
}

#[test]
fn machines_with_overlays_share_a_disk() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    let first = guest("blk mode=write seed=5 end=hlt").disk(&disk, ",overlay").start();
    first.says("OK blk");
    guest("blk mode=write seed=6").disk(&disk, ",overlay").run().passed("blk");
    assert!(bytes(&disk).iter().all(|&byte| byte == 0xa5), "the disk is as it was");
}

#[test]
fn overlays_with_a_name_are_kept() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    let overlay = format!(",overlay={}", disks.0.path().join("overlay").display());
    guest("blk mode=write seed=5").disk(&disk, &overlay).run().passed("blk");
    guest("blk mode=verify seed=5").disk(&disk, &overlay).run().passed("blk");
    assert_eq!(bytes(&disk), vec![0xa5; 1 << 20], "the disk below stays as it is");
}

#[test]
fn qcow2_disks() {
    need!(host::kvm(), host::program("qemu-img").map(drop));
    let disks = Disks::new();
    for driver in DRIVERS {
        let disk = disks.qcow2("disk.qcow2", None);
        guest(&format!("blk {driver} rounds=3"))
            .disk(&disk, "")
            .run()
            .passed("blk")
            .said("blk: 2048 sectors\n");
        host::run("qemu-img", &["check", "-q", &disk.to_string_lossy()]);
    }
}

#[test]
fn qcow2_disks_with_a_backing_file() {
    need!(host::kvm(), host::program("qemu-img").map(drop));
    let disks = Disks::new();
    let (base, twin) = (disks.raw("base", 1 << 20), disks.raw("twin", 1 << 20));
    let disk = disks.qcow2("disk.qcow2", Some(&base));
    let write = "blk mode=write seed=3 first=9 sectors=7";
    guest(write).disk(&disk, "").run().passed("blk");
    guest(write).disk(&twin, "").run().passed("blk");
    guest("blk mode=verify seed=3 first=9 sectors=7").disk(&disk, ",format=qcow2,ro").run().passed("blk");

    assert_eq!(bytes(&base), vec![0xa5; 1 << 20], "the base stays as it is");
    let (disk, twin) = (disk.to_string_lossy(), twin.to_string_lossy());
    host::run("qemu-img", &["check", "-q", &disk]);
    host::run("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", &disk, &twin]);
}

#[test]
fn what_a_guest_writes_does_not_make_its_disk_another_format() {
    need!(host::kvm(), host::program("qemu-img").map(drop));
    let disks = Disks::new();
    let secret = disks.raw("secret", 1 << 20);
    let image = disks.qcow2("image.qcow2", Some(&secret));
    let disk = disks.raw("disk", 2 << 20);
    File::options().write(true).open(&disk).expect("a disk").write_at(&bytes(&image), 0).expect("a disk");
    guest("blk slot=0").disk(&disk, "").run().passed("blk").said("blk: 4096 sectors\n");
}

#[test]
fn random_numbers() {
    need!(host::kvm());
    for driver in DRIVERS {
        guest(&format!("rng {driver} bytes=4096")).run().passed("rng");
    }
    let disks = Disks::new();
    let file = disks.0.path().join("numbers");
    fs::write(&file, [[1; 64], [2; 64]].concat()).expect("a file");
    guest("rng")
        .option("--rng", &file)
        .run()
        .passed("rng")
        .said("the first 0x101010101010101 and 0x202020202020202");
}

#[test]
fn frames_over_a_tap() {
    need!(host::kvm(), world::offered());
    for driver in ["", "event_idx", "indirect event_idx"] {
        // The guest asks for the host's address; the answer, or whatever else comes, it sends back.
        let test = format!("net ip=0xcb007102 to=0xcb007101 frames=2 {driver}");
        let machine = Machine::in_world(kernel(), "tap=tap0", "").words(format!("test={test}"));
        machine.run().passed("net").said("net: echoed 2 frames");
    }
}

#[test]
fn frames_over_passt() {
    need!(host::kvm(), host::program("passt").map(drop));
    for driver in ["", "event_idx"] {
        let machine = guest(&format!("net ip=0x0a000202 to=0x0a000203 {driver}"));
        machine.option("--net", "user").run().passed("net");
    }
}

#[test]
fn the_mac_address_is_the_one_asked_for() {
    need!(host::kvm(), host::program("passt").map(drop));
    let ended = guest("net").option("--net", "user,mac=02:11:22:33:44:55").run();
    ended.passed("net").said("net: mac 0x2 0x11 0x22 0x33 0x44 0x55\n");
}

#[test]
fn kicks() {
    need!(host::kvm());
    guest("kick count=5000").run().passed("kick");
}

#[test]
fn hostile_drivers_of_a_disk() {
    need!(host::kvm());
    let disks = Disks::new();
    for options in ["", ",engine=sync", ",ro", ",overlay"] {
        let disk = disks.raw("disk", 1 << 20);
        guest("hostile slot=0").disk(&disk, options).run().passed("hostile").said("hostile: device 2\n");
    }
}

#[test]
fn hostile_drivers_of_a_network_interface() {
    need!(host::kvm(), world::offered());
    let machine = Machine::in_world(kernel(), "tap=tap0", "").words("test=hostile slot=0");
    machine.run().passed("hostile").said("hostile: device 1\n");
    if host::program("passt").is_ok() {
        guest("hostile slot=0").option("--net", "user").run().passed("hostile").said("hostile: device 1\n");
    }
}

#[test]
fn hostile_drivers_of_the_random_numbers() {
    need!(host::kvm());
    let ended = guest("hostile slot=0").cpus(2).run();
    ended.passed("hostile").said("hostile: device 4\n");
    // It breaks rules some thousand times, and the host's disk is not to be filled with that.
    let said = ended.err.lines().count();
    assert!((10..300).contains(&said), "{said} lines:\n{ended}");
}

/// A disk of 1 MiB on a file system with room for 16 KiB of it, until `ballast` is removed.
const FULL: &str = "mount -t tmpfs -o size=64k none /mnt
truncate -s 1M /mnt/disk; head -c 48k /dev/zero >/mnt/ballast; ";

#[test]
fn a_host_without_space_pauses_the_machine_and_it_goes_on() {
    need!(host::kvm(), world::offered());
    for engine in ENGINES {
        let machine = Machine::in_world(kernel(), "none", FULL).option("--name", "one");
        let disk = Path::new("/mnt/disk");
        let machine = machine.disk(disk, &format!(",engine={engine}"));
        let machine = machine.words("test=blk mode=write seed=3 first=0 sectors=64").start();
        let told = machine.complains("no space left on the host");
        assert!(told.contains("disk vda"), "{told}");
        let state = machine.command(&["ps"]).out;
        assert!(state.contains("stalled"), "{state}");
        // Without any space it stalls again.
        assert_eq!(machine.command(&["resume", "one"]).status, 0);
        assert!(eventually(|| machine.command(&["ps"]).out.contains("stalled")));
        let outside = PathBuf::from(format!("/proc/{}/root/mnt", machine.pid()));
        fs::remove_file(outside.join("ballast")).expect("the ballast");
        // What it holds at the end goes with the mount, so it is looked at through a descriptor.
        let disk = File::open(outside.join("disk")).expect("the disk");
        assert_eq!(machine.command(&["resume", "one"]).status, 0);
        machine.finish().passed("blk");
        let mut written = vec![0; 64 * 512];
        disk.read_exact_at(&mut written, 0).expect("the disk");
        assert!(
            written.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)),
            "all of it is written"
        );
    }
}

#[test]
fn a_limit_of_file_sizes_pauses_the_machine_and_it_goes_on() {
    need!(host::kvm());
    for engine in ENGINES {
        let disks = Disks::new();
        let disk = disks.raw("disk", 1 << 20);
        let machine = guest("blk mode=write seed=3 first=0 sectors=64").option("--name", "one");
        let machine = machine.disk(&disk, &format!(",engine={engine}")).file_size_limit(16 << 10).start();
        let told = machine.complains("limit of file sizes");
        assert!(told.contains("disk vda") && told.contains(&format!("--pid {}", machine.pid())), "{told}");
        assert_eq!(machine.command(&["resume", "one"]).status, 0);
        assert!(eventually(|| machine.command(&["ps"]).out.contains("stalled")), "it stalls again");
        machine.lifts_file_size_limit();
        assert_eq!(machine.command(&["resume", "one"]).status, 0);
        machine.finish().passed("blk");
        let written = fs::read(&disk).expect("the disk");
        assert!(written[..64 * 512].chunks(512).all(|sector| sector != [0xa5; 512]), "all of it is written");
    }
}

#[test]
fn where_io_uring_is_refused_disks_work_without() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    guest("blk").without_uring().disk(&disk, "").run().passed("blk");
    guest("blk").without_uring().disk(&disk, ",engine=uring").run().refused(&["io_uring", "engine=sync"]);
}

#[test]
fn the_network_without_being_asked_for() {
    need!(host::kvm());
    let machine = || Machine::rvmm().arg("--json").option("--kernel", kernel()).words("test=hello");
    let without = machine().env("PATH", "/nonexistent").run();
    without.passed("hello");
    assert!(without.err.contains("the machine has no network: passt is not installed"), "{without}");
    if host::program("passt").is_ok() {
        let with = machine().option("--name", "one").words("end=hlt").start();
        with.says("OK hello");
        let inspected: serde_json::Value =
            serde_json::from_str(&with.command(&["inspect", "one"]).out).expect("JSON");
        assert!(inspected[0]["config"]["network-interfaces"][0]["user"].is_object(), "{inspected}");
    }
}

#[test]
fn devices_serve_again_after_a_restart() {
    need!(host::kvm());
    let disks = Disks::new();
    let disk = disks.raw("disk", 1 << 20);
    let machine = guest("blk mode=write end=reset").disk(&disk, "").option("--stop-timeout", "0").start();
    machine.says_times("OK blk", 4);
    machine.terminate();
    machine.finish().ended(130, "stopped");
}
