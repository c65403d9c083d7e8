//! What happens while a snapshot is written, and what its files are.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;

use serde_json::Value;

use super::counter::{address, counting, goes_on_from};
use super::refused::{Small, large};
use super::world::{World, memory, refused};
use crate::common::machine::Running;
use crate::common::{eventually, host};
use crate::need;

/// A machine with a disk that it is writing to, for ever.
fn busy(world: &World) -> Running {
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", "blk until=typed seed=1 sectors=1").disk(&disk, "").start();
    source.says("blk: 2048 sectors");
    source
}

/// Machines of these snapshots find on their disks what is in their memory.
fn are_right(world: &World, names: &[&str]) {
    for name in names {
        world.does(&["snapshot", "verify", &world.text(name)]);
        let copy = world.restore(name, name);
        world.inspect(name);
        // It reads what it has written, over and over.
        world.create(name, &format!("{name}-later"), &[]);
        assert!(host::runs(copy.pid()) && !copy.said().contains("FAIL"), "{name}: {}", copy.said());
    }
}

#[test]
fn a_machine_that_ends_meanwhile() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", "dirty pages=16384 mib=64 every=1").disk(&disk, "").start();
    source.says_times("dirty: round", 1);
    let save = world.command_line(&["snapshot", "create", "source", &world.text("one"), "--json"]).start();
    // It is frozen, and its memory is being written.
    assert!(eventually(|| !world.list("disk.overlay").is_empty()));
    world.does(&["stop", "source", "--force"]);
    source.finish().ended(130, "stopped");
    let saved = save.finish();
    assert_eq!(saved.status, 0, "{saved}");
    assert_eq!(world.list("disk"), ["disk"], "its layers are merged, afterwards");
    world.does(&["snapshot", "verify", &world.text("one")]);
    world.restore("one", "copy").says_times("dirty: round", 1);
    assert!(world.list(".one").is_empty(), "{:?}", world.list(".one"));
}

#[test]
fn several_at_once() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world);
    let names = ["s1", "s2", "s3", "s4"];
    thread::scope(|scope| {
        for name in names {
            let world = &world;
            scope.spawn(move || world.create("source", name, &[]));
        }
    });
    drop(source);
    are_right(&world, &names);
}

#[test]
fn one_that_fails_when_all_is_frozen() {
    need!(host::kvm());
    let world = World::new();
    let small = Small::mount(world.text("small"));
    need!(small.as_ref().map(drop).map_err(String::clone));
    let source = busy(&world);
    world.create("source", "s1", &[]);
    // No room for the disk, which has its next layer by then.
    let target = world.text("small/one");
    refused(&world.command(&["snapshot", "create", "source", &target]), &["disk", "space"]);
    world.create("source", "s2", &[]);
    are_right(&world, &["s1", "s2"]);
    // Nor for one after which the machine is to end: it goes on.
    refused(&world.command(&["snapshot", "create", "source", &target, "--stop"]), &["disk", "space"]);
    assert_eq!(world.inspect("source")["state"], "Running");
    world.create("source", "s3", &["--stop"]);
    source.finish().ended(130, "stopped");
    are_right(&world, &["s3"]);
}

#[test]
fn a_machine_that_stands_still_and_is_not_saved_stands_still() {
    need!(host::kvm());
    let world = World::new();
    let small = Small::mount(world.text("small"));
    need!(small.as_ref().map(drop).map_err(String::clone));
    let source = large(&world);
    world.does(&["pause", "source"]);
    let target = world.text("small/one");
    refused(&world.command(&["snapshot", "create", "source", &target, "--stop"]), &["small", "space"]);
    assert_eq!(world.inspect("source")["state"], "Paused");
    world.does(&["resume", "source"]);
    source.says_times("dirty: round", 4);
}

#[test]
fn its_files_are_its_owners_alone() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o644)).expect("a disk");
    let source = counting(&world, "source").memory("16M").disk(&disk, ",overlay").start();
    address(&source);
    world.create("source", "one", &["--live"]);
    world.create("source", "two", &["--base", &world.text("one")]);
    world.does(&["snapshot", "rebase", &world.text("two")]);
    for name in ["one", "two"] {
        let mode = |path| fs::metadata(path).expect("a file").mode() & 0o777;
        assert_eq!(mode(world.path(name)), 0o700);
        let files: Vec<_> = fs::read_dir(world.path(name)).expect("a snapshot").flatten().collect();
        assert!(files.len() >= 6, "{files:?}");
        for file in files {
            assert_eq!(mode(file.path()), 0o600, "{}", file.path().display());
        }
    }
    // The user's file is none of them: another machine that writes to it changes no snapshot.
    let layer = world.path("one/disk-0-0");
    assert_ne!(fs::metadata(&layer).expect("a layer").ino(), fs::metadata(&disk).expect("a disk").ino());
    let before = fs::read(&layer).expect("a layer");
    drop(source);
    world.guest("other", "blk mode=write rounds=1 seed=3 sectors=64").disk(&disk, "").run().passed("blk");
    assert!(fs::read(&layer).expect("a layer") == before);
}

#[test]
fn inspect_tells_what_it_is() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = counting(&world, "source").memory("16M").cpus(2).disk(&disk, "").start();
    let at = address(&source);
    world.create("source", "one", &["--live"]);
    world.create("source", "two", &["--live", "--base", &world.text("one")]);
    assert!(host::runs(source.pid()), "it runs on");
    let inspect = |name: &str| -> Value {
        serde_json::from_str(&world.does(&["snapshot", "inspect", &world.text(name)])).expect("JSON")
    };
    let (one, two) = (inspect("one"), inspect("two"));
    assert_eq!((&one["ram_bytes"], &two["ram_bytes"]), (&Value::from(16 << 20), &Value::from(16 << 20)));
    assert_eq!(one["config"]["machine-config"]["vcpu_count"], 2);
    assert_eq!(one["bundle"]["disks"][0]["layers"][0], "disk-0-0");
    assert!(one["bundle"]["parent"].is_null());
    assert_eq!(two["bundle"]["parent"], "../one");
    assert_eq!(two["memory"][1], world.text("one"));
    let data = |told: &Value| told["data_bytes"].as_u64().expect("bytes");
    assert!(data(&one) > 0 && data(&one) <= 16 << 20);
    let bytes = memory(&world.path("two"));
    assert!(
        bytes.chunks(4096).filter(|page| page.iter().any(|&byte| byte != 0)).count() as u64 * 4096
            <= data(&two)
    );
    goes_on_from(&world.restore("two", "copy"), world.captured("two", at));
}

#[test]
fn a_block_device_is_refused_before_anything_is_done() {
    need!(host::kvm());
    need!(host::program("losetup").map(drop));
    let world = World::new();
    let file = world.raw("disk", 1 << 20);
    let attached = std::process::Command::new("losetup").args(["-f", "--show"]).arg(&file).output();
    let device =
        attached.map_err(|error| error.to_string()).and_then(|output| match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
            false => Err("no loop device can be had".into()),
        });
    need!(device.as_ref().map(drop).map_err(String::clone));
    let device = device.expect("a device");
    let source = counting(&world, "source").memory("16M").disk(device.as_ref(), "").start();
    let at = address(&source);
    let target = world.text("one");
    let words = [&*device, "block device", "overlay=DIR"];
    refused(&world.command(&["snapshot", "create", "source", &target]), &words);
    drop(source);
    let place = format!(",overlay={}", world.text(""));
    let source = counting(&world, "source").memory("16M").disk(device.as_ref(), &place).start();
    address(&source);
    world.create("source", "one", &[]);
    goes_on_from(&world.restore("one", "copy"), world.captured("one", at));
    drop(source);
    let _ = std::process::Command::new("losetup").args(["-d", &device]).status();
}

#[test]
fn a_place_where_nothing_can_be_written() {
    need!(host::kvm());
    let world = World::new();
    let small = Small::mount(world.text("small"));
    need!(small.as_ref().map(drop).map_err(String::clone));
    let disk = world.raw("disk", 4096);
    let source = counting(&world, "source").memory("2M").disk(&disk, "").start();
    let at = address(&source);
    world.create("source", "small/one", &["--stop"]);
    let remount =
        std::process::Command::new("mount").args(["-o", "remount,ro", &world.text("small")]).status();
    assert!(remount.expect("mount").success());
    let copy = world.restore("small/one", "copy");
    goes_on_from(&copy, world.captured("small/one", at));
    world.create("copy", "two", &[]);
}

/// The host has so many reserved huge pages that nobody uses.
fn free_huge_pages(wanted: u64) -> host::Offer<()> {
    let told = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let free = told.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse().ok());
    if free >= Some(wanted) { Ok(()) } else { Err(format!("{wanted} reserved huge pages (vm.nr_hugepages)")) }
}

/// The reserved huge pages (2 MiB each) that a process has.
fn huge_pages_of(pid: u32) -> u64 {
    let told = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let kib = told.lines().find_map(|line| line.strip_prefix("HugetlbPages:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("HugetlbPages in kB") / 2048
}

#[test]
fn a_machine_on_reserved_huge_pages() {
    need!(host::kvm());
    need!(free_huge_pages(32));
    let world = World::new();
    // All of its memory is written all the time, and the host need not have another page for it.
    let source = world.guest("source", "dirty pages=12288 mib=48 every=1").memory("64M");
    let source = source.arg("--huge-pages").start();
    source.says_times("dirty: round", 1);
    assert!(huge_pages_of(source.pid()) >= 24, "what it writes is in huge pages");
    world.create("source", "one", &[]);
    let rounds = source.said().matches("dirty: round").count();
    source.says_times("dirty: round", rounds + 2);
    world.does(&["stop", "source", "--force"]);
    source.finish();
    world.restore("one", "copy").says_times("dirty: round", 1);
    let copy = world.restore_with("one", "huge", &["--memory-mode", "copy"]);
    copy.says_times("dirty: round", 1);
    assert!(huge_pages_of(copy.pid()) >= 24, "it goes on in huge pages");
}
