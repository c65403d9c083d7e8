//! Disks are part of a snapshot: what is written later is not in it, and the user's disk is whole in the end.

use std::collections::BTreeMap;
use std::fs;

use super::world::World;
use crate::common::machine::Running;
use crate::common::{eventually, host};
use crate::need;

/// A guest that writes other bytes in every round, and reads in every round what it has written. Its machine stays
/// when it is done, so it can be saved at any time.
const BUSY: &str = "blk rounds=400 seed=1 sectors=1 end=hlt";

/// A machine with a disk that it is writing to.
fn busy(world: &World, test: &str) -> Running {
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", test).disk(&disk, "").start();
    source.says("blk: 2048 sectors");
    source
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
        let source = world.guest("source", BUSY).disk(&disk, &format!(",engine={engine}")).start();
        source.says("blk: 2048 sectors");
        let names: Vec<String> = (0..4).map(|number| format!("s{number}")).collect();
        let mut caught = 0;
        for name in &names {
            world.create("source", name, &[]);
            caught += usize::from(!source.said().contains("OK blk"));
        }
        assert!(caught > 0, "the guest was too fast for this test");
        let saved: Vec<_> = names.iter().map(|name| layers(&world, name)).collect();
        source.says("OK blk\n");
        for (name, saved) in names.iter().zip(&saved).take(caught) {
            assert!(*saved == layers(&world, name), "{name} changed while the machine ran on");
            world.restore(name, "copy").says("OK blk\n");
            assert!(*saved == layers(&world, name), "{name} changed while its copy ran");
        }
        world.does(&["stop", "source", "--force"]);
        source.finish().ended(130, "stopped");
        assert_eq!(world.list("disk"), ["disk"], "no layer is left beside the user's disk");
    }
}

#[test]
fn disks_over_five_generations() {
    need!(host::kvm());
    let world = World::new();
    let mut machine = busy(&world, "blk rounds=1500 seed=1 sectors=1");
    for number in 1..=5 {
        let (parent, target) = (format!("m{}", number - 1), format!("s{number}"));
        let parent = if number == 1 { "source" } else { &parent };
        let base = world.text(&format!("s{}", number - 1));
        let options = if number % 2 == 0 { vec!["--base", base.as_str()] } else { vec![] };
        world.create(parent, &target, &options);
        assert!(!machine.said().contains("OK blk"), "the guest was too fast for this test");
        machine = world.restore(&target, &format!("m{number}"));
        // It does something in every generation, so that each has layers of its own.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    machine.finish().passed("blk");
}

#[test]
fn the_users_disk_has_it_all_when_the_machine_has_ended() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, "blk mode=write rounds=200 seed=1 sectors=64");
    for name in ["one", "two"] {
        world.create("source", name, &[]);
    }
    source.finish().passed("blk");
    assert_eq!(world.list("disk"), ["disk"], "the layers are merged");
    let verify = world.guest("verify", "blk mode=verify seed=200 sectors=64");
    verify.disk(&world.path("disk"), ",ro").run().passed("blk");
}

#[test]
fn the_users_disk_is_made_whole_after_a_kill() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, "blk mode=write rounds=200 seed=1 sectors=64 end=hlt");
    for name in ["one", "two"] {
        world.create("source", name, &[]);
    }
    source.says("OK blk");
    assert_eq!(source.kill().status, -libc::SIGKILL);
    assert!(world.list("disk.overlay").len() == 2, "a killed machine merges nothing");
    // As if whoever merged them had been killed, too, after the first.
    fs::rename(world.path("disk.overlay-2"), world.path("later")).expect("a layer");
    world.guest("merge", "hello").disk(&world.path("disk"), "").run().passed("hello");
    fs::rename(world.path("later"), world.path("disk.overlay-2")).expect("a layer");
    let verify = world.guest("verify", "blk mode=verify seed=200 sectors=64");
    verify.disk(&world.path("disk"), "").run().passed("blk");
    assert_eq!(world.list("disk"), ["disk"], "who opens the disk next merges the layers");
}

#[test]
fn a_snapshot_keeps_its_disk_when_the_users_is_gone() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, "blk rounds=1000 seed=1 sectors=1");
    world.create("source", "one", &[]);
    assert!(!source.said().contains("OK blk"), "the guest was too fast for this test");
    source.kill();
    for name in world.list("disk") {
        fs::remove_file(world.path(&name)).expect("a disk");
    }
    world.restore("one", "copy").finish().passed("blk");
}

#[test]
fn clones_keep_their_disks_apart() {
    need!(host::kvm());
    let world = World::new();
    let source = busy(&world, BUSY);
    world.create("source", "one", &[]);
    assert!(!source.said().contains("OK blk"), "the guest was too fast for this test");
    drop(source);
    let saved = layers(&world, "one");
    let console = format!("file={}", world.text("%n.log"));
    world.does(&["clone", &world.text("one"), "-n", "5", "--name", "w", "--console", &console]);
    let text = |name: &str| fs::read_to_string(world.path(name)).unwrap_or_default();
    for number in 1..=5 {
        let log = format!("w-{number}.log");
        // The guest writes byte after byte: its verdict counts when the line is whole.
        let verdict = |text: &str| text.contains("OK blk\n") || text.contains("FAIL");
        assert!(eventually(|| verdict(&text(&log))), "{}", text(&log));
        assert!(text(&log).contains("OK blk\n"), "{}", text(&log));
    }
    assert!(saved == layers(&world, "one"), "the snapshot stays as it is");
}
