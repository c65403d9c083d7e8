//! Many machines from one snapshot.

use std::collections::BTreeSet;
use std::fs;

use rvmm::sys::file;

use super::counter::{address, counting, goes_on_from, saved, went_on_from};
use super::world::{World, refused};
use crate::common::{eventually, host};
use crate::need;

/// Where the guest finds its generation identifier (ACPI tables lead there; `arch` has the layout).
const VMGENID: u64 = rvmm::arch::x86_64::layout::VMGENID.0;
/// And the mark of its clock's disruption, and the machine's generation (UAPI.13).
const DISRUPTION: u64 = rvmm::arch::x86_64::layout::VMCLOCK.0 + 0x10;
const GENERATION: u64 = rvmm::arch::x86_64::layout::VMCLOCK.0 + 0x68;

#[test]
fn twenty_at_once_each_with_an_identity_of_its_own() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "one", &[]);
    let captured = world.captured("one", at);
    let console = format!("file={}", world.text("%n.log"));
    let report = world.does(&[
        "clone",
        &world.text("one"),
        "-n",
        "20",
        "--name",
        "w",
        "--console",
        &console,
        "--json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&report).expect("a report");
    assert_eq!(report["machines"].as_array().map(Vec::len), Some(20), "{report}");
    let marks = [VMGENID, DISRUPTION, GENERATION];
    let mut identities = BTreeSet::from(marks.map(|mark| world.captured("one", mark)));
    assert_eq!(identities.len(), marks.len(), "each has a value of its own");
    for number in 1..=20 {
        let name = format!("w-{number}");
        let text = || fs::read_to_string(world.path(&format!("{name}.log"))).unwrap_or_default();
        went_on_from(text, captured);
        if number <= 4 {
            world.create(&name, &name, &["--base", &world.text("one")]);
            for mark in marks {
                assert!(identities.insert(world.captured(&name, mark)), "{name} is like another one");
            }
        }
    }
    let listed = world.does(&["ps", "-q"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("w-")).count(), 20, "{listed}");
    world.does(&["stop", "--all", "--force"]);
    assert_eq!(world.does(&["ps", "-q"]), "");
    source.finish().ended(130, "stopped");
}

#[test]
fn the_failure_of_one_does_not_hurt_the_others() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "w-2").start();
    address(&source);
    world.create("w-2", "one", &[]);
    let ended = world.command(&["clone", &world.text("one"), "-n", "3", "--name", "w"]);
    assert!(ended.status == 1 && ended.err.lines().count() == 1 && ended.err.contains("w-2"), "{ended}");
    assert_eq!(world.does(&["ps", "-q"]).lines().count(), 3);
}

#[test]
fn paused_clones_wait() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "one", &[]);
    let captured = world.captured("one", at);
    world.does(&["clone", &world.text("one"), "-n", "2", "--name", "w", "--paused"]);
    for name in ["w-1", "w-2"] {
        world.create(name, name, &[]);
        assert_eq!(world.captured(name, at), captured, "{name} ran");
    }
}

#[test]
fn clones_of_a_machine_that_runs() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", "counter every=500").disk(&disk, "").start();
    address(&source);
    let console = format!("file={}", world.text("%n.log"));
    let store = world.text("store");
    let clone = ["clone", "source", "-n", "3", "--store", &store, "--console", &console];
    let report: serde_json::Value =
        serde_json::from_str(&world.does(&[&clone[..], &["--json"]].concat())).expect("a report");
    assert_eq!(report["machines"][2]["name"], "source-3", "{report}");
    let left = fs::read_dir(world.path("store/scratch")).expect("a directory").count();
    assert_eq!(left, 0, "the snapshot between is gone");
    for number in 1..=3 {
        let text = || fs::read_to_string(world.path(&format!("source-{number}.log"))).unwrap_or_default();
        assert!(eventually(|| text().matches("\ncounter ").count() >= 5), "{}", text());
        let first = text().split_whitespace().skip_while(|word| *word != "counter").nth(1).map(str::parse);
        went_on_from(text, first.and_then(Result::ok).expect("a number"));
    }
    // All of it is in the machine: it can be saved again.
    world.create("source-1", "one", &[]);
    world.does(&["snapshot", "verify", &world.text("one")]);
    drop(world.restore("one", "again"));
    // What a killed clone has left goes with the next one, and names that are taken leave nothing, either.
    fs::create_dir(world.path("store/scratch/source-1")).expect("a directory");
    let again = world.command(&clone);
    assert_eq!(again.status, 1, "{again}");
    assert!(again.err.lines().all(|line| line.contains("runs already")), "{again}");
    assert_eq!(fs::read_dir(world.path("store/scratch")).expect("a directory").count(), 0);
    refused(&world.command(&["clone", "sourec", "--store", &store]), &["sourec", "no machine of that name"]);
    goes_on_from(&source, 500);
}

#[test]
fn whoever_clones_is_killed() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    address(&source);
    let (store, console) = (world.text("store"), format!("file={}", world.text("%n.log")));
    let fixed = ["clone", "source", "--store", &store, "--console", &console];
    let cloning = world.command_line(&[&fixed[..], &["-n", "20", "--name", "w"]].concat()).start();
    assert!(eventually(|| world.path("w-1.log").exists()));
    cloning.kill();
    // The next one clears up, and names are free or those of machines that run.
    let ended = world.command(&[&fixed[..], &["-n", "20", "--name", "w"]].concat());
    assert!(ended.err.lines().all(|line| line.contains("runs already")), "{ended}");
    assert_eq!(fs::read_dir(world.path("store/scratch")).expect("a directory").count(), 0);
    let listed = world.does(&["ps", "-q"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("w-")).count(), 20, "{listed}");
    for number in [1, 20] {
        let text = || fs::read_to_string(world.path(&format!("w-{number}.log"))).unwrap_or_default();
        assert!(eventually(|| text().matches("\ncounter ").count() >= 5), "{}", text());
    }
    goes_on_from(&source, 500);
}

#[test]
fn memory_that_is_copied_needs_no_snapshot() {
    need!(host::kvm());
    let world = World::new();
    let (at, captured) = saved(&world, "one");
    let copy = world.restore_with("one", "copy", &["--memory-mode", "copy"]);
    copy.says_times("\ncounter ", 1);
    // What is mapped would be gone with this, and kill the machine.
    let memory = fs::File::options().write(true).open(world.path("one/memory")).expect("a file");
    memory.set_len(0).expect("a file");
    fs::remove_dir_all(world.path("one")).expect("a directory");
    goes_on_from(&copy, captured);
    world.create("copy", "two", &[]);
    let captured = world.captured("two", at);
    drop(copy);
    goes_on_from(&world.restore("two", "again"), captured);
    refused(
        &world.command(&["restore", &world.text("two"), "--memory-mode", "eager"]),
        &["eager", "cow, copy"],
    );
}

#[test]
fn names_and_numbers_that_cannot_be() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    address(&source);
    world.create("source", "one", &[]);
    refused(&world.command(&["clone", &world.text("one"), "--name", "a/b"]), &["a/b"]);
    refused(&world.command(&["clone", &world.text("one"), "-n", "0"]), &["0"]);
    refused(&world.command(&["clone", &world.text("one"), "-n", "30000000"]), &["30000000", "memory for"]);
    // The name of a directory need not be one of a machine.
    fs::rename(world.path("one"), world.path("one and only")).expect("a snapshot");
    let clone = ["clone", &world.text("one and only")];
    refused(&world.command(&clone), &["one and only-1", "--name"]);
    world.does(&[&clone[..], &["--name", "w"]].concat());
}

#[test]
fn a_snapshots_disk_is_locked_as_long_as_one_clone_has_it() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = counting(&world, "source").disk(&disk, "").start();
    address(&source);
    world.create("source", "one", &["--stop"]);
    let file = fs::File::options().read(true).write(true).open(world.path("one/disk-0-0")).expect("a layer");
    let is_free = || {
        let free = file::lock(&file, file::Lock::Exclusive).expect("locks");
        file::unlock(&file);
        free
    };
    world.does(&["clone", &world.text("one"), "-n", "2", "--name", "w"]);
    assert!(!is_free());
    world.does(&["stop", "--force", "w-1"]);
    assert!(eventually(|| world.does(&["ps", "-q"]).lines().count() == 1));
    assert!(!is_free(), "the other one still reads it");
    world.does(&["stop", "--force", "w-2"]);
    assert!(eventually(is_free));
}
