//! Disks are part of a snapshot: what is written later is not in it, and the user's disk is whole in the end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use super::world::{World, refused};
use crate::common::machine::Running;
use crate::common::{PATIENCE, host};
use crate::need;

/// A guest that writes other bytes in every round, and reads in every round what it has written, until it is told to end.
const BUSY: &str = "blk until=typed seed=1 sectors=1";
/// The same without reading.
const WRITING: &str = "blk mode=write until=typed seed=1 sectors=64";

/// A machine with a disk that it is writing to.
fn busy(world: &World, test: &str) -> Running {
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", test).disk(&disk, "").stdin(Stdio::piped()).start();
    source.says("blk: 2048 sectors");
    source
}

/// Tells a busy guest to end, which has found all that it wrote; the number of its rounds.
#[track_caller]
pub fn end(mut machine: Running) -> u64 {
    machine.types("q");
    machine.finish().passed("blk").value("blk: rounds ").parse().expect("a number")
}

/// Tells a guest with `end=hlt` to end, whose machine stays; the number of its rounds.
#[track_caller]
fn rests(machine: &mut Running) -> u64 {
    machine.types("q");
    let said = machine.says("OK blk\n").said();
    let rounds = said.lines().find_map(|line| line.strip_prefix("blk: rounds "));
    rounds.and_then(|rounds| rounds.trim().parse().ok()).expect("a number")
}

/// The disk has what the last of so many rounds wrote.
#[track_caller]
pub fn has_all(world: &World, rounds: u64) {
    let verify = world.guest("verify", &format!("blk mode=verify seed={rounds} sectors=64"));
    verify.disk(&world.path("disk"), "").run().passed("blk");
}

/// Every file of a snapshot's disks.
fn layers(world: &World, snapshot: &str) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(world.path(snapshot)).expect("a snapshot").flatten();
    let files = files.map(|file| (file.file_name().to_string_lossy().into_owned(), file.path()));
    let disks = files.filter(|(name, _)| name.starts_with("disk-"));
    disks.map(|(name, path)| (name, fs::read(path).expect("a layer"))).collect()
}

#[test]
fn memory_and_disk_are_of_one_moment() {
    need!(host::kvm());
    for engine in ["uring", "sync"] {
        let world = World::new();
        let disk = world.raw("disk", 1 << 20);
        let source = world.guest("source", BUSY).disk(&disk, &format!(",engine={engine}"));
        let source = source.stdin(Stdio::piped()).start();
        source.says("blk: 2048 sectors");
        let names: Vec<String> = (0..4).map(|number| format!("s{number}")).collect();
        for name in &names {
            world.create("source", name, &[]);
        }
        let saved: Vec<_> = names.iter().map(|name| layers(&world, name)).collect();
        end(source);
        for (name, saved) in names.iter().zip(&saved) {
            assert!(*saved == layers(&world, name), "{name} changed while the machine ran on");
            end(world.restore(name, "copy"));
            assert!(*saved == layers(&world, name), "{name} changed while its copy ran");
        }
        assert_eq!(world.list("disk"), ["disk"], "no layer is left beside the user's disk");
    }
}

#[test]
fn disks_over_five_generations() {
    need!(host::kvm());
    let world = World::new();
    let mut machine = busy(&world, BUSY);
    for number in 1..=5 {
        let (parent, target) = (format!("m{}", number - 1), format!("s{number}"));
        let parent = if number == 1 { "source" } else { &parent };
        let base = world.text(&format!("s{}", number - 1));
        let options = if number % 2 == 0 { vec!["--base", base.as_str()] } else { vec![] };
        world.create(parent, &target, &options);
        let name = format!("m{number}");
        machine = world.restore(&target, &name);
        world.inspect(&name);
        // It does something in every generation, so that each has layers of its own.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    end(machine);
}

#[test]
fn the_users_disk_has_it_all_when_the_machine_has_ended() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, WRITING);
    for name in ["one", "two"] {
        world.create("source", name, &[]);
    }
    let rounds = end(source);
    assert_eq!(world.list("disk"), ["disk"], "the layers are merged");
    has_all(&world, rounds);
}

#[test]
fn the_users_disk_is_made_whole_after_a_kill() {
    need!(host::kvm());
    let world = World::new();
    let mut source = busy(&world, &format!("{WRITING} end=hlt"));
    for name in ["one", "two"] {
        world.create("source", name, &[]);
    }
    let rounds = rests(&mut source);
    assert_eq!(source.kill().status, -libc::SIGKILL);
    assert!(world.list("disk.overlay").len() == 2, "a killed machine merges nothing");
    // As if whoever merged them had been killed, too, after the first.
    fs::rename(world.path("disk.overlay-2"), world.path("later")).expect("a layer");
    world.guest("merge", "hello").disk(&world.path("disk"), "").run().passed("hello");
    fs::rename(world.path("later"), world.path("disk.overlay-2")).expect("a layer");
    fs::write(world.path("disk.overlay-merging"), "").expect("a mark");
    has_all(&world, rounds);
    assert_eq!(world.list("disk"), ["disk"], "who opens the disk next merges the layers");
}

#[test]
fn a_snapshot_keeps_its_disk_when_the_users_is_gone() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, BUSY);
    world.create("source", "one", &[]);
    source.kill();
    for name in world.list("disk") {
        fs::remove_file(world.path(&name)).expect("a disk");
    }
    end(world.restore("one", "copy"));
}

#[test]
fn clones_keep_their_disks_apart() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, BUSY);
    world.create("source", "one", &[]);
    drop(source);
    let saved = layers(&world, "one");
    let console = format!("socket={}", world.text("%n.sock"));
    world.does(&["clone", &world.text("one"), "-n", "5", "--name", "w", "--console", &console]);
    for number in 1..=5 {
        let mut console = UnixStream::connect(world.path(&format!("w-{number}.sock"))).expect("a console");
        console.set_read_timeout(Some(PATIENCE)).expect("a socket");
        console.write_all(b"q").expect("a console");
        let mut said = String::new();
        console.read_to_string(&mut said).expect("all until the machine ends");
        assert!(said.contains("OK blk\n"), "{said}");
    }
    assert!(saved == layers(&world, "one"), "the snapshot stays as it is");
}

#[test]
fn snapshots_of_a_machine_share_the_users_disk_as_it_was() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, BUSY);
    let inode = |snapshot: &str| fs::metadata(world.path(snapshot).join("disk-0-0")).expect("a layer").ino();
    world.create("source", "s1", &[]);
    world.create("source", "s2", &["--base", &world.text("s1")]);
    assert_eq!(inode("s1"), inode("s2"));
    fs::remove_dir_all(world.path("s1")).expect("a snapshot");
    fs::rename(world.path("s2"), world.path("moved")).expect("a snapshot");
    world.create("source", "s3", &[]);
    assert_ne!(inode("s3"), inode("moved"), "nobody has said where it is");
    let disk = world.path("disk");
    let contents = || fs::read(&disk).expect("a disk");
    let before = contents();
    end(source);
    assert_eq!(fs::metadata(&disk).expect("a disk").nlink(), 1);
    // What was merged since is another disk, if it is anything.
    let merged = before != contents();
    // Another seed: it must not come to write what the disk had in it before.
    let again = world
        .guest("again", "blk until=typed seed=1000000 sectors=1")
        .disk(&disk, "")
        .stdin(Stdio::piped())
        .start();
    again.says("blk: 2048 sectors");
    world.create("again", "s4", &["--base", &world.text("s3")]);
    assert_eq!(inode("s4") != inode("s3"), merged);
    end(again);
    for name in ["s3", "s4"] {
        world.does(&["snapshot", "verify", &world.text(name)]);
        end(world.restore(name, name));
    }
}

#[test]
fn a_qcow2_image_is_saved_and_made_whole() {
    need!(host::kvm(), host::program("qemu-img").map(drop));
    let world = World::new();
    let disk = world.path("disk");
    let text = disk.to_string_lossy();
    host::run("qemu-img", &["create", "-q", "-f", "qcow2", &text, "1M"]);
    let start = |test: &str, options: &str| {
        let source = world.guest("source", test).disk(&disk, options).stdin(Stdio::piped()).start();
        source.says("blk: 2048 sectors");
        source
    };
    for options in [",format=qcow2", ",format=qcow2,overlay"] {
        let source = start(BUSY, options);
        for name in ["one", "two"] {
            world.create("source", name, &[]);
        }
        end(source);
        for name in ["one", "two"] {
            world.does(&["snapshot", "verify", &world.text(name)]);
            end(world.restore(name, "copy"));
            fs::remove_dir_all(world.path(name)).expect("a snapshot");
        }
        assert_eq!(world.list("disk"), ["disk"], "the layers are merged");
        host::run("qemu-img", &["check", "-q", &text]);
    }
    // Killed, and opened again.
    let mut source = start(&format!("{WRITING} end=hlt"), ",format=qcow2");
    for name in ["one", "two"] {
        world.create("source", name, &[]);
    }
    let rounds = rests(&mut source);
    source.kill();
    assert_eq!(world.list("disk.overlay").len(), 2);
    let verify = world.guest("verify", &format!("blk mode=verify seed={rounds} sectors=64"));
    verify.disk(&disk, ",format=qcow2").run().passed("blk");
    assert_eq!(world.list("disk"), ["disk"], "who opens the disk next merges the layers");
    host::run("qemu-img", &["check", "-q", &text]);
    // What is kept in a file of the user's choice is no layer of a snapshot.
    let named = format!(",format=qcow2,overlay={}", world.text("named"));
    let source = start(BUSY, &named);
    refused(&world.command(&["snapshot", "create", "source", &world.text("three")]), &["overlay=DIR"]);
    end(source);
}
