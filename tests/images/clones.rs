//! Commits of machines that were cloned or restored, and many commits of one that runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::common::{eventually, host};
use crate::need;
use crate::world::World;

/// Starts a machine whose guest is at work on its disk when this returns.
#[track_caller]
fn busy(world: &World, name: &str, test: &str) {
    world.starts("bare:1", name, test, &[]);
    world.has_said(name, "blk: 2048 sectors");
}

fn overlays(world: &World, name: &str) -> usize {
    let entries = fs::read_dir(world.path("store/instances").join(name)).expect("an instance").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("overlay-")).count()
}

/// The machine stands on the layers of this image and has one overlay.
#[track_caller]
fn stands_on(world: &World, name: &str, image: &str) -> usize {
    let length = |value: &serde_json::Value| value.as_array().map_or(0, Vec::len);
    let machine = world.json(&["inspect", name]);
    let layers = length(&machine[0]["config"]["drives"][0]["base"]);
    let image = world.json(&["inspect", image]);
    assert_eq!((overlays(world, name), layers), (1, length(&image[0]["config"]["disk"]["diff_ids"])));
    layers
}

#[test]
fn a_clone_is_committed_as_any_machine() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    busy(&world, "web", "mode=write rounds=100 seed=100 sectors=64");
    world.does(&["commit", "web", "bare:2", "-m", "second"]);
    world.does(&["pause", "web"]);
    let console = format!("file={}", world.text("%n.log"));
    world.does(&["clone", "web", "--name", "copy", "--console", &console]);
    // What the clone stands on stays while it runs.
    world.does(&["rmi", "-f", "bare:2"]);
    world.does(&["resume", "web"]);
    world.has_said("web", "OK blk");
    world.does(&["commit", "web", "bare:web"]);
    world.does(&["rm", "-f", "web"]);
    world.does(&["gc"]);
    world.has_said("copy-1", "OK blk");
    world.does(&["commit", "copy-1", "copied:1", "-m", "of the clone"]);
    let history = world.json(&["history", "copied:1"]);
    let said: Vec<_> = (0..3).map(|number| history[number]["comment"].as_str().unwrap_or_default()).collect();
    assert_eq!(said, ["of the clone", "second", "base"]);
    for image in ["copied:1", "bare:web"] {
        world.verifies(image, 199);
    }
    // Nothing has changed since, and it is in no version twice.
    world.does(&["commit", "copy-1", "copied:2"]);
    assert_eq!(world.json(&["history", "copied:2"])[0]["empty_layer"], true);
    world.does(&["commit", "copy-1", "copied:warm", "--warm"]);
    world.does(&["run", "-d", "copied:warm", "--name", "on", "--rm", "--console", &console]);
    world.does(&["commit", "on", "copied:3"]);
    world.verifies("copied:3", 199);
    world.does(&["verify"]);
}

#[test]
fn a_restored_machine_is_committed_while_its_image_is_there() {
    need!(host::kvm());
    let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let world = World::new();
    world.bare();
    busy(&world, "web", "mode=write rounds=100 seed=100 sectors=64");
    let device = |path: &std::path::Path| fs::metadata(path).expect("a directory").dev();
    need!(
        (device(elsewhere.path()) != device(&world.path("")))
            .then_some(())
            .ok_or("one file system for all".to_string())
    );
    // Two overlays are below, of which one is in no version.
    world.does(&["commit", "web", "bare:2"]);
    world.does(&["snapshot", "create", "web", "first"]);
    let snapshot = elsewhere.path().join("snap").to_string_lossy().into_owned();
    world.does(&["snapshot", "create", "web", &snapshot, "--stop"]);
    let console = format!("file={}", world.text("again.log"));
    let restore = || {
        let arguments = ["restore", &snapshot, "--name", "again", "--console", &console];
        let restored = world.command(&arguments).spawn().expect("rvmm");
        assert!(eventually(|| world.says(&["inspect", "again"]).status == 0));
        restored
    };
    let mut restored = restore();
    world.has_said("again", "OK blk");
    // What it writes is on another file system than the store.
    world.does(&["commit", "again", "again:1"]);
    world.verifies("again:1", 199);
    world.does(&["snapshot", "verify", &snapshot]);
    world.does(&["stop", "--force", "again"]);
    restored.wait().expect("an end");
    world.does(&["rm", "web"]);
    world.does(&["rmi", "bare:1", "bare:2", "again:1"]);
    world.does(&["gc"]);
    let mut restored = restore();
    world.refuses(&["commit", "again", "again:2"], &["`again` stands on", "load or pull it"]);
    world.does(&["stop", "--force", "again"]);
    restored.wait().expect("an end");
}

#[test]
fn a_store_that_only_a_snapshot_names_is_left_alone() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    busy(&world, "web", "mode=write rounds=80 seed=100 sectors=64");
    world.does(&["snapshot", "create", "web", "snap", "--stop"]);
    let leases = || fs::read_dir(world.path("store/leases")).map_or(0, Iterator::count);
    assert!(eventually(|| leases() == 0), "the machine has ended");
    let console = format!("file={}", world.text("again.log"));
    let arguments = ["--store", "other", "restore", "snap", "--name", "again", "--console", &console];
    let mut restored = world.command(&arguments).spawn().expect("rvmm");
    world.has_said("again", "OK blk");
    assert_eq!(leases(), 0, "nothing is held in a store that the command does not use");
    assert!(!world.path("run/again/image.json").exists());
    world.refuses(&["commit", "again", "again:1"], &["again", "image"]);
    world.does(&["stop", "--force", "again"]);
    restored.wait().expect("an end");
    // With the image there it is the same image, wherever the store is.
    world.does(&["save", "bare:1", "-o", "bare.tar"]);
    world.does(&["--store", "other", "load", "-i", "bare.tar"]);
    let mut restored = world.command(&arguments).spawn().expect("rvmm");
    assert!(eventually(|| world.says(&["inspect", "again"]).status == 0));
    world.does(&["--store", "other", "commit", "again", "again:1"]);
    world.does(&["stop", "--force", "again"]);
    restored.wait().expect("an end");
}

#[test]
fn however_many_commits_a_machine_has_one_overlay() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    // It writes and reads all the time, and compares.
    busy(&world, "web", "until=typed seed=1 sectors=16");
    for number in 2..12 {
        let image = format!("bare:{number}");
        world.does(&["commit", "web", &image]);
        stands_on(&world, "web", &image);
    }
    world.does(&["snapshot", "create", "web", "snap"]);
    assert_eq!(overlays(&world, "web"), 2, "a snapshot has put one more on top");
    world.does(&["commit", "web", "bare:warm", "--warm"]);
    assert!(stands_on(&world, "web", "bare:warm") > 2, "the guest has written meanwhile");
    let said = fs::read_to_string(world.path("web.log")).expect("a log");
    assert!(!said.contains("FAIL"), "{said}");
    world.does(&["snapshot", "verify", "snap"]);
    world.does(&["rm", "-f", "web"]);
    // One that is killed has what it had, above the last version.
    busy(&world, "killed", "mode=write rounds=50 seed=7 sectors=64");
    world.does(&["commit", "killed", "last:1"]);
    world.has_said("killed", "OK blk");
    let pid = world.json(&["ps"])[0]["pid"].as_u64().expect("a process").to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill").success());
    assert!(eventually(|| world.json(&["ps"]).as_array().is_some_and(Vec::is_empty)), "it is dead");
    world.does(&["commit", "killed", "last:2"]);
    world.verifies("last:2", 56);
    world.does(&["start", "killed"]);
    world.does(&["rm", "-f", "killed"]);
    world.does(&["verify"]);
}

#[test]
fn what_a_machine_without_a_name_stands_on_stays() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 3, &["--rm"]);
    world.does(&["commit", "web", "bare:2"]);
    world.does(&["rmi", "-f", "bare:1", "bare:2"]);
    world.does(&["gc"]);
    world.does(&["commit", "web", "bare:3"]);
    world.verifies("bare:3", 3);
}

#[test]
fn damage_to_any_layer_of_a_snapshot_is_found() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 3, &[]);
    world.does(&["commit", "web", "bare:2"]);
    world.does(&["snapshot", "create", "web", "first"]);
    // The store knows the digests of its layers, and a capture makes those that it does not know.
    for path in fs::read_dir(world.path("store/cache")).expect("a cache").flatten().map(|entry| entry.path())
    {
        if path.extension() == Some("blake3".as_ref()) {
            fs::remove_file(path).expect("a digest");
        }
    }
    world.does(&["rm", "-f", "web"]);
    world.writes("bare:2", "old", 4, &[]);
    world.does(&["snapshot", "create", "old", "second"]);
    let digests = |snapshot: &str| {
        let disk = world.json(&["snapshot", "inspect", snapshot])["bundle"]["disks"][0].clone();
        let digests: Vec<String> = disk["digests"]
            .as_array()
            .expect("digests")
            .iter()
            .flat_map(|one| one.as_str().map(String::from))
            .collect();
        assert_eq!(digests.len(), disk["layers"].as_array().map_or(0, Vec::len), "{disk}");
        digests
    };
    let (first, second) = (digests("first"), digests("second"));
    assert_eq!((first.len(), second.len()), (4, 4), "a map, two layers, an overlay");
    assert_eq!(first[..3], second[..3]);
    for snapshot in ["first", "second"] {
        assert!(world.does(&["snapshot", "verify", snapshot]).contains("whole"));
        world.does(&["snapshot", "rebase", snapshot]);
        for number in 0..4 {
            let (layer, kept) = (format!("{snapshot}/disk-0-{number}"), world.path("kept"));
            fs::rename(world.path(&layer), &kept).expect("a layer");
            let mut bytes = fs::read(&kept).expect("a layer");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(world.path(&layer), bytes).expect("a layer");
            let name = format!("disk-0-{number}");
            for command in ["verify", "rebase"] {
                let said = world.says(&["snapshot", command, snapshot]);
                let refused = said.status != 0 && said.out.is_empty();
                assert!(refused && (number == 0 || said.err.contains("damaged")), "{name}: {said:?}");
            }
            fs::rename(&kept, world.path(&layer)).expect("a layer");
        }
    }
}

#[test]
fn a_warm_image_has_as_many_instances_as_one_likes() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.counts("web", &[]);
    world.does(&["commit", "web", "team/bare:warm", "--warm"]);
    world.does(&["rm", "-f", "web"]);
    let console = format!("file={}", world.text("%n.log"));
    let told = world.json(&["clone", "team/bare:warm", "-n", "3", "--net", "none", "--console", &console]);
    assert_eq!(told["machines"].as_array().map(Vec::len), Some(3), "{told}");
    // What they stand on stays while one of them runs.
    world.refuses(&["rmi", "team/bare:warm"], &["uses it"]);
    world.does(&["rmi", "-f", "team/bare:warm", "bare:1"]);
    world.does(&["gc"]);
    for name in ["bare-1", "bare-2", "bare-3"] {
        world.has_said(name, "\ncounter ");
        let log = fs::read_to_string(world.path(&format!("{name}.log"))).expect("a log");
        assert!(!log.contains("counter at"), "it does not boot again: {log}");
    }
    world.does(&["commit", "bare-2", "bare:2"]);
    assert_eq!(world.json(&["history", "bare:2"]).as_array().map(Vec::len), Some(3));
    world.does(&["stop", "--all", "--force"]);
    world.refuses(&["clone", "bare:2"], &["bare:2", "no memory", "rvmm run", "--warm"]);
    world.refuses(&["clone", "bare:3"], &["no snapshot `bare:3`", "did you mean `bare:2`"]);
    // It was kept as what the version stands on.
    world.does(&["rmi", "bare:2"]);
    assert_eq!(fs::read_dir(world.path("store/warm")).expect("bundles").count(), 0);
}
