//! What cannot be saved or restored is refused with one line, and nothing is left half written.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::counter::{address, counting, goes_on_from};
use super::world::{World, refused};
use crate::common::bare::kernel;
use crate::common::eventually;
use crate::common::host::{self, Offer};
use crate::common::machine::{Machine, Running};
use crate::need;

/// A machine that is to be saved, and still runs after it was refused.
fn refuse(world: &World, target: &str, options: &[&str], words: &[&str]) {
    let source = counting(world, "source").start();
    let at = address(&source);
    let target = world.text(target);
    let before = world.list("");
    refused(&world.command(&[&["snapshot", "create", "source", &target], options].concat()), words);
    assert_eq!(world.list(""), before, "nothing is left");
    world.create("source", "whole", &[]);
    goes_on_from(&world.restore("whole", "copy"), world.captured("whole", at));
}

#[test]
fn a_target_that_is_there() {
    need!(host::kvm());
    let world = World::new();
    fs::write(world.path("file"), "mine").expect("a file");
    refuse(&world, "file", &[], &["file", "already"]);
    assert_eq!(fs::read(world.path("file")).expect("a file"), b"mine");
}

#[test]
fn a_directory_that_is_not_there() {
    need!(host::kvm());
    refuse(&World::new(), "no/where", &[], &["no/"]);
}

#[test]
fn a_directory_that_cannot_be_written() {
    need!(host::kvm());
    let world = World::new();
    // Not even root writes there.
    let source = counting(&world, "source").start();
    address(&source);
    refused(&world.command(&["snapshot", "create", "source", "/proc/one"]), &["/proc/"]);
    let locked = world.path("locked");
    fs::create_dir(&locked).expect("a directory");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("a directory");
    let target = world.text("locked/one");
    if fs::write(locked.join("probe"), "").is_err() {
        refused(&world.command(&["snapshot", "create", "source", &target]), &["locked", "ermission"]);
    }
}

#[test]
fn a_base_that_is_not_there() {
    need!(host::kvm());
    let world = World::new();
    let base = world.text("base");
    refuse(&world, "one", &["--base", &base], &[&base]);
}

#[test]
fn a_base_that_is_none() {
    need!(host::kvm());
    let world = World::new();
    fs::create_dir(world.path("base")).expect("a directory");
    let base = world.text("base");
    refuse(&world, "one", &["--base", &base], &[&base, "not a snapshot"]);
}

#[test]
fn a_base_of_another_memory() {
    need!(host::kvm());
    let world = World::new();
    let small = counting(&world, "small").memory("64M").start();
    address(&small);
    world.create("small", "base", &[]);
    drop(small);
    let base = world.text("base");
    refuse(&world, "one", &["--base", &base], &["base", "RAM"]);
}

#[test]
fn a_base_that_has_gone_since() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    address(&source);
    world.create("source", "one", &[]);
    world.create("source", "two", &["--base", &world.text("one")]);
    fs::rename(world.path("one"), world.path("elsewhere")).expect("a directory");
    refused(&world.command(&["restore", &world.text("two")]), &["/one"]);
    refused(&world.command(&["clone", &world.text("two")]), &["/one"]);
    let (two, elsewhere) = (world.text("two"), world.text("elsewhere"));
    let remedy = format!("`rvmm snapshot rebase {two} --onto DIR`");
    refused(&world.command(&["snapshot", "verify", &two]), &["/one", &remedy]);
    // Nor is it of use to one that stands on it, and both say so in a list.
    world.does(&["snapshot", "rebase", &two, "--onto", &elsewhere]);
    world.create("source", "three", &["--base", &two]);
    let unusable = || {
        let list = world.does(&["snapshot", "ls", &world.text(""), "--json"]);
        let list: Vec<serde_json::Value> = serde_json::from_str(&list).expect("JSON");
        list.iter().filter(|line| line["error"].is_string()).count()
    };
    assert_eq!(unusable(), 0);
    fs::rename(&elsewhere, world.path("one")).expect("a directory");
    assert_eq!(unusable(), 2);
    world.does(&["snapshot", "rebase", &two, "--onto", &world.text("one")]);
    assert_eq!(unusable(), 0);
    world.does(&["snapshot", "verify", &world.text("three")]);
}

#[test]
fn a_machine_that_is_not_there() {
    need!(host::kvm());
    let world = World::new();
    let target = world.text("one");
    refused(&world.command(&["snapshot", "create", "nobody", &target]), &["nobody"]);
    assert!(!world.path("one").exists());
}

#[test]
fn what_is_no_snapshot() {
    let world = World::new();
    for words in [&["restore"][..], &["clone"], &["snapshot", "inspect"], &["snapshot", "verify"]] {
        let nowhere = world.text("nowhere");
        refused(&world.command(&[words, &[&nowhere]].concat()), &[&nowhere]);
        fs::create_dir_all(world.path("empty")).expect("a directory");
        let empty = world.text("empty");
        refused(&world.command(&[words, &[&empty]].concat()), &[&empty, "not a snapshot"]);
    }
}

/// A small file system of our own.
pub struct Small(String);

impl Small {
    pub fn mount(path: String) -> Offer<Self> {
        fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none", &path]).output();
        let mount = mount.map_err(|error| format!("no mount: {error}"))?;
        match mount.status.success() {
            true => Ok(Small(path)),
            false => Err("cannot mount a small file system".into()),
        }
    }
}

/// A guest that writes to more memory than a small file system has room for.
pub fn large(world: &World) -> Running {
    let source = world.guest("source", "dirty pages=2048 mib=64 every=1").start();
    source.says_times("dirty: round", 1);
    source
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn no_space() {
    need!(host::kvm());
    let world = World::new();
    let small = Small::mount(world.text("small"));
    need!(small.as_ref().map(drop).map_err(String::clone));
    let source = large(&world);
    let target = world.text("small/one");
    refused(&world.command(&["snapshot", "create", "source", &target]), &["small", "space"]);
    assert_eq!(fs::read_dir(world.path("small")).expect("a directory").count(), 0, "nothing is left");
    source.says_times("dirty: round", 4);
    drop(source);

    // Nor for a difference folded. A restored machine that writes nothing to its disk needs none.
    let disk = world.raw("disk", 1 << 18);
    let source = counting(&world, "source").memory("16M").disk(&disk, "").start();
    let at = address(&source);
    world.create("source", "base", &[]);
    let (base, small) = (world.text("base"), world.text("small/one"));
    world.does(&["snapshot", "create", "source", &small, "--base", &base, "--stop"]);
    // As much of it as there is room for.
    let _ = fs::write(world.path("small/fill"), vec![1; 1 << 20]);
    refused(&world.command(&["snapshot", "rebase", &small]), &["small", "space"]);
    goes_on_from(&world.restore("small/one", "copy"), world.captured("small/one", at));
    assert_eq!(fs::read_dir(world.path("small")).expect("a directory").count(), 2, "nothing is left");
}

#[test]
fn a_kill_while_it_is_written_leaves_a_whole_snapshot_or_none() {
    need!(host::kvm());
    let world = World::new();
    for wait in [0, 3, 10, 30, 100] {
        let source = world.guest("source", "dirty pages=16384 mib=64 every=1").start();
        source.says("dirty: ready");
        let save = world.command_line(&["snapshot", "create", "source", &world.text("one")]).start();
        let begun = || !world.list(".one.partial").is_empty() || world.path("one").exists();
        assert!(eventually(begun));
        std::thread::sleep(std::time::Duration::from_millis(wait));
        source.kill();
        let saved = save.finish();
        if world.path("one").exists() {
            world.does(&["snapshot", "verify", &world.text("one")]);
            fs::remove_dir_all(world.path("one")).expect("a directory");
        } else {
            refused(&saved, &["source"]);
        }
    }
    // What the killed ones have left goes with the next one.
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "one", &[]);
    assert!(world.list(".one").is_empty(), "{:?}", world.list(".one"));
    goes_on_from(&world.restore("one", "copy"), world.captured("one", at));
}

#[test]
fn damage_is_found() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    address(&source);
    world.create("source", "one", &[]);
    drop(source);
    for file in ["bundle.json", "config.json", "state.json", "memory.index", "memory"] {
        let path = world.path("one").join(file);
        let whole = fs::read(&path).expect("a file");
        let restore = || world.command(&["restore", &world.text("one"), "--paused"]);
        fs::write(&path, &whole[..whole.len() / 2]).expect("a file");
        refused(&restore(), &[file]);
        fs::remove_file(&path).expect("a file");
        refused(&restore(), &[if file == "bundle.json" { "not a snapshot" } else { file }]);
        let mut changed = whole.clone();
        // In the memory there must be something: its first page has the guest's tables.
        let at = whole.iter().position(|&byte| byte != 0).expect("a byte");
        changed[at] ^= 1;
        fs::write(&path, &changed).expect("a file");
        refused(&world.command(&["snapshot", "verify", &world.text("one")]), &[file]);
        fs::write(&path, &whole).expect("a file");
    }
    world.does(&["snapshot", "verify", &world.text("one")]);
}

#[test]
fn disks_of_another_length() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let test = "blk mode=write until=typed seed=1 sectors=64";
    let source = world.guest("source", test).disk(&disk, "").start();
    source.says("blk: 2048 sectors");
    world.create("source", "zero", &[]);
    world.create("source", "one", &["--stop"]);
    for layer in ["disk-0-0", "disk-0-1"] {
        let path = world.path("one").join(layer);
        let whole = fs::read(&path).expect("a layer");
        let longer = [&whole[..], &[0; 4096]].concat();
        for bytes in [&whole[..0], &whole[..whole.len() / 2], &whole[..whole.len() - 512], &longer] {
            // Written anew: other snapshots have the same file.
            fs::remove_file(&path).expect("a layer");
            fs::write(&path, bytes).expect("a layer");
            refused(&world.command(&["restore", &world.text("one")]), &["vda"]);
            refused(&world.command(&["snapshot", "verify", &world.text("one")]), &["disk-0-"]);
            let cloned = world.command(&["clone", &world.text("one"), "--name", "w"]);
            assert!(cloned.status == 1 && cloned.err.lines().count() == 1, "{cloned}");
        }
        fs::remove_file(&path).expect("a layer");
        refused(&world.command(&["restore", &world.text("one")]), &["vda", layer, "--disk"]);
        fs::write(&path, &whole).expect("a layer");
    }
    drop(world.restore("one", "copy"));
}

#[test]
fn damage_of_disks_is_found() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", "blk until=typed seed=1 sectors=1").disk(&disk, "").start();
    source.says("blk: 2048 sectors");
    world.create("source", "zero", &[]);
    world.create("source", "one", &[]);
    drop(source);
    // A machine that was restored knows the digests of what it stands on, and a copy is as good as what was saved.
    let copy = world.restore("one", "copy");
    world.inspect("copy");
    world.create("copy", "two", &[]);
    drop(copy);
    world.does(&["snapshot", "rebase", &world.text("two")]);
    for snapshot in ["one", "two"] {
        let verify = || world.command(&["snapshot", "verify", &world.text(snapshot)]);
        assert_eq!(verify().status, 0);
        for layer in ["disk-0-0", "disk-0-1"] {
            let path = world.path(snapshot).join(layer);
            let whole = fs::read(&path).expect("a layer");
            // Written anew: other snapshots have the same file.
            let put = |bytes: &[u8]| {
                fs::remove_file(&path).expect("a layer");
                fs::write(&path, bytes).expect("a layer");
            };
            put(&whole[..whole.len() / 2]);
            refused(&verify(), &[snapshot, "disk"]);
            let mut changed = whole.clone();
            let at = whole.iter().position(|&byte| byte != 0).expect("a byte");
            changed[at] ^= 1;
            put(&changed);
            refused(&verify(), &[layer, "damaged"]);
            fs::remove_file(&path).expect("a layer");
            refused(&verify(), &[layer]);
            fs::write(&path, &whole).expect("a layer");
            assert_eq!(verify().status, 0);
        }
    }
}

#[test]
fn names_that_are_not_utf8() {
    need!(host::kvm());
    let world = World::new();
    let name = |directory: &str| world.path(directory).join(OsStr::from_bytes(b"\xff"));
    fs::create_dir(world.path("kernels")).expect("a directory");
    fs::copy(kernel(), name("kernels")).expect("a kernel");
    let source = counting(&world, "source").disk(&world.raw("disk", 4096), "").start();
    address(&source);
    let create = || world.command_line(&["snapshot", "create", "source"]);
    refused(&create().arg(name("")).run(), &["UTF-8"]);
    refused(&create().arg(world.path("one")).option("--base", name("")).run(), &["UTF-8"]);
    refused(&world.command_line(&["clone", "source"]).option("--store", name("")).run(), &["UTF-8"]);
    // It runs on.
    source.says_times("\ncounter ", 5);
    // One that was given such a name later can be looked at, and is in no way of others.
    world.create("source", "one", &[]);
    world.create("source", "two", &[]);
    fs::rename(world.path("one"), name("")).expect("a snapshot");
    let list = world.does(&["snapshot", "ls", &world.text(""), "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!((&list[0]["path"], list[1]["path"].is_string()), (&world.text("two").into(), true), "{list}");
    for (words, status) in
        [(&["snapshot", "verify"][..], 0), (&["snapshot", "inspect"], 1), (&["restore"], 125)]
    {
        let ended = world.command_line(words).arg(name("")).run();
        assert_eq!(ended.status, status, "{ended}");
        assert!(status == 0 || ended.err.contains("UTF-8: rename it"), "{ended}");
    }
    // Nothing is started that ends when somebody asks what runs.
    let other = Machine::rvmm().option("--kernel", name("kernels")).option("--net", "none");
    other.run().refused(&["UTF-8"]);
}
