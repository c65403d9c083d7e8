//! What a snapshot is made of belongs together: its parts are those that were written with it, and what it stands on is what it
//! was made on.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rvmm::disk;
use rvmm::vmm::snapshot::Restore;
use serde_json::{Value, json};

use super::counter::{address, counting, goes_on_from, went_on_from};
use super::hostile::{forge, try_restore};
use super::world::{World, memory, refused};
use crate::common::machine::Running;
use crate::common::{eventually, host};
use crate::need;

/// A machine that counts, with two snapshots, the second on the first; where it counts.
fn two(world: &World) -> (Running, u64) {
    let source = counting(world, "source").memory("16M").start();
    let at = address(&source);
    world.create("source", "s1", &[]);
    world.create("source", "s2", &["--base", &world.text("s1")]);
    (source, at)
}

#[test]
fn another_base_in_the_place_of_the_first() {
    need!(host::kvm());
    let world = World::new();
    let (_source, at) = two(&world);
    let captured = world.captured("s2", at);
    // The same machine again, a moment later, under the same name.
    let other = counting(&world, "other").memory("16M").start();
    address(&other);
    fs::rename(world.path("s1"), world.path("moved")).expect("a directory");
    world.create("other", "s1", &[]);
    let words = [&*world.text("s2"), &world.text("s1"), "another snapshot", "--base"];
    for command in
        [&["restore"][..], &["snapshot", "verify"], &["snapshot", "rebase"], &["snapshot", "inspect"]]
    {
        refused(&world.command(&[command, &[&world.text("s2")]].concat()), &words);
    }
    let (three, s2) = (world.text("s3"), world.text("s2"));
    refused(&world.command(&["snapshot", "create", "other", &three, "--base", &s2]), &words);
    // Wherever the right one is now, it is known.
    let moved = world.text("moved");
    goes_on_from(&world.restore_with("s2", "copy", &["--base", &moved]), captured);
    refused(&world.command(&["restore", &s2, "--base", &world.text("s1")]), &words);
    world.does(&["snapshot", "rebase", &s2, "--onto", &moved]);
    assert_eq!(world.captured("s2", at), captured);
}

#[test]
fn clones_of_a_difference_whose_base_has_moved() {
    need!(host::kvm());
    let world = World::new();
    let (source, at) = two(&world);
    drop(source);
    let captured = world.captured("s2", at);
    fs::rename(world.path("s1"), world.path("moved")).expect("a directory");
    let (s2, console) = (world.text("s2"), format!("file={}", world.text("%n.log")));
    let clone = ["clone", &s2, "-n", "2", "--name", "w", "--console", &console];
    refused(&world.command(&clone), &["s1", &s2, "--base"]);
    world.does(&[&clone[..], &["--base", &world.text("moved")]].concat());
    for number in [1, 2] {
        let said = || fs::read_to_string(world.path(&format!("w-{number}.log"))).unwrap_or_default();
        went_on_from(said, captured);
    }
}

#[test]
fn memory_of_another_snapshot() {
    need!(host::kvm());
    let world = World::new();
    let _source = two(&world);
    world.create("source", "s3", &[]);
    for name in ["memory", "memory.index"] {
        fs::copy(world.path("s1").join(name), world.path("s3").join(name)).expect("a file");
    }
    let error = Restore::open(&world.path("s3")).err().expect("a refusal").to_string();
    assert!(error.contains("s3/memory.index is damaged"), "{error}");
}

#[test]
fn opened_while_it_is_rewritten() {
    need!(host::kvm());
    let world = World::new();
    let _source = two(&world);
    world.create("source", "s3", &["--base", &world.text("s2")]);
    let (path, before, done) = (world.path("s3"), memory(&world.path("s3")), AtomicBool::new(false));
    let opened = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut opened = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(memory(&path) == before, "memory of two snapshots");
                opened += 1;
            }
            opened
        });
        for round in 0..20 {
            let onto = world.text(if round % 2 == 0 { "s1" } else { "s2" });
            world.does(&["snapshot", "rebase", &world.text("s3"), "--onto", &onto]);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().expect("a reader")
    });
    assert!(opened > 0 && memory(&path) == before);
}

/// A machine with a disk of 1 MiB, which counts.
fn with_disk(world: &World) -> Running {
    let disk = world.raw("disk", 1 << 20);
    let source = counting(world, "source").memory("16M").disk(&disk, "").start();
    address(&source);
    source
}

#[test]
fn files_that_are_none() {
    need!(host::kvm());
    let world = World::new();
    let _source = with_disk(&world);
    world.create("source", "one", &[]);
    let one = world.path("one");
    for name in ["bundle.json", "config.json", "state.json", "memory.index", "memory", "disk-0-0"] {
        let (path, aside) = (one.join(name), world.path("aside"));
        fs::rename(&path, &aside).expect("a file");
        let refuses = || {
            let error = try_restore(&one).expect_err("a refusal");
            assert!(error.contains(name), "{error}");
            fs::remove_file(&path).expect("a file");
        };
        for to in ["/dev/zero", &world.text("aside")] {
            symlink(to, &path).expect("a link");
            refuses();
        }
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        refuses();
        fs::rename(&aside, &path).expect("a file");
    }
    try_restore(&one).expect("the snapshot as it was");
}

#[test]
fn a_disk_is_the_one_that_was_checked() {
    need!(host::kvm());
    let world = World::new();
    let _source = with_disk(&world);
    world.create("source", "one", &[]);
    world.create("source", "two", &[]);
    let (one, other) = (world.path("two"), world.path("other"));
    fs::write(&other, vec![0x5a; 1 << 20]).expect("a file");
    fs::remove_file(one.join("disk-0-0")).expect("a layer");
    let gone = Restore::open(&one).expect("its disk may be replaced");
    fs::copy(world.path("one/disk-0-0"), one.join("disk-0-0")).expect("a layer");
    let opened = |restore: &Restore| disk::open(&restore.config().devices.block[0].disk());
    let error = opened(&gone).err().expect("what came later was not checked").to_string();
    assert!(error.contains("disk-0-0"), "{error}");

    let whole = fs::read(one.join("disk-0-0")).expect("a layer");
    let in_its_place = || fs::rename(&other, one.join("disk-0-0")).expect("a file");
    let in_place_of_all = || {
        fs::rename(&one, world.path("away")).expect("a directory");
        fs::rename(world.path("one"), &one).expect("a directory");
    };
    for (number, swap) in [&in_its_place as &dyn Fn(), &in_place_of_all].into_iter().enumerate() {
        let restore = Restore::open(&one).expect("a snapshot");
        let whole = if number == 0 { whole.clone() } else { vec![0x5a; 1 << 20] };
        swap();
        let contents =
            opened(&restore).expect("its disk").freeze().expect("a disk").expect("it is written to");
        let out = world.path(&format!("out{number}"));
        fs::create_dir(&out).expect("a directory");
        contents.store(&out, &out, 0, &[]).expect("its layers");
        assert!(fs::read(out.join("disk-0-0")).expect("a layer") == whole, "another file, round {number}");
    }
}

#[test]
fn a_disk_that_only_the_configuration_knows() {
    need!(host::kvm());
    let world = World::new();
    let source = with_disk(&world);
    world.create("source", "one", &["--stop"]);
    drop(source);
    let (one, victim) = (world.path("one"), world.raw("victim", 1 << 20));
    let read = |name: &str| fs::read(one.join(name)).expect("a file");
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    config["drives"][0]["drive_id"] = json!("other");
    config["drives"][0]["path_on_host"] = json!(victim);
    let config = serde_json::to_vec(&config).expect("JSON");
    forge(&one, &world.path("forged"), &[("config.json", config), ("state.json", read("state.json"))]);
    let forged = world.text("forged");
    refused(&world.command(&["restore", &forged]), &["disk `other`", "not in the snapshot", "--disk"]);
    // Whoever names one gets it.
    let replaced = format!("other={}", world.text("victim"));
    let copy = world.restore_with("forged", "copy", &["--disk", &replaced]);
    assert!(eventually(|| copy.said().contains("\ncounter ")), "{}", copy.said());
}

#[test]
fn chips_that_are_another() {
    need!(host::kvm());
    let world = World::new();
    let _source = two(&world);
    let one = world.path("s1");
    let read = |name: &str| fs::read(one.join(name)).expect("a file");
    let mut state: Value = serde_json::from_slice(&read("state.json")).expect("JSON");
    let chip = state["vm"]["pic_slave"].clone();
    state["vm"]["ioapic"] = chip;
    let state = serde_json::to_vec(&state).expect("JSON");
    forge(&one, &world.path("forged"), &[("config.json", read("config.json")), ("state.json", state)]);
    let error = try_restore(&world.path("forged")).expect_err("a refusal");
    assert!(error.contains("interrupt chip"), "{error}");
}
