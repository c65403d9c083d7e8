//! Machines go on exactly where they were, over many generations.

use std::fs;

use super::counter::{address, counting, goes_on_from, went_on_from};
use super::world::World;
use crate::common::{eventually, host};
use crate::need;

#[test]
fn registers_and_timers_survive() {
    need!(host::kvm());
    for cpus in 1..=4 {
        let world = World::new();
        let source = counting(&world, "source").cpus(cpus).start();
        let at = address(&source);
        world.create("source", "one", &[]);
        let captured = world.captured("one", at);
        goes_on_from(&world.restore("one", "copy"), captured);
        goes_on_from(&source, 500);
    }
}

#[test]
fn cpus_are_saved_in_the_middle_of_their_work() {
    need!(host::kvm());
    let world = World::new();
    // It starts its CPUs again and again, so that a snapshot has them at any point of it, a restart included.
    let source = world.guest("source", "smp cpus=4 end=reset").cpus(4).start();
    source.says("OK smp");
    for round in 0..6 {
        let name = format!("s{round}");
        let saved = world.command(&["snapshot", "create", "source", &world.text(&name)]);
        // How it ended says more than that it did.
        assert!(saved.status == 0, "{saved}\nthe source: {}", source.finish());
        let copy = world.restore(&name, "copy");
        copy.says_times("OK smp", 3);
        assert!(!copy.said().contains("FAIL"), "{}", copy.said());
    }
}

/// Their local APICs are saved with identifiers of 32 bits.
#[test]
fn three_hundred_cpus_are_saved() {
    need!(host::kvm(), host::vcpus(300));
    let world = World::new();
    let source = world.guest("source", "smp cpus=300 end=reset").cpus(300).start();
    source.says("OK smp");
    world.create("source", "one", &["--stop"]);
    let copy = world.restore("one", "copy");
    copy.says_times("OK smp", 2);
    assert!(!copy.said().contains("FAIL"), "{}", copy.said());
}

/// Saves a machine, its restored copy, the copy's copy and so on, and compares each with what was captured.
fn five_generations(diff: impl Fn(usize) -> bool, clones: bool) {
    let world = World::new();
    let mut machine = Some(counting(&world, "g0").start());
    let at = address(machine.as_ref().expect("a machine"));
    let mut before = 0;
    for number in 1..=5 {
        let (parent, target, name) = (format!("g{}", number - 1), format!("s{number}"), format!("g{number}"));
        // A machine that `clone` started has a number behind its name.
        let parent = if clones && number > 1 { format!("{parent}-1") } else { parent };
        let base = world.text(&format!("s{}", number - 1));
        let options = if number > 1 && diff(number) { vec!["--base", &base] } else { vec![] };
        world.create(&parent, &target, &options);
        world.does(&["snapshot", "verify", &world.text(&target)]);
        let captured = world.captured(&target, at);
        assert!(captured > before, "generation {number}: {captured} after {before}");
        before = captured;
        if clones {
            let console = world.text("%n.log");
            let file = format!("file={console}");
            world.does(&["clone", &world.text(&target), "--name", &name, "--console", &file]);
            let log = world.path(&format!("{name}-1.log"));
            let text = || fs::read_to_string(&log).unwrap_or_default();
            went_on_from(text, captured);
        } else {
            let next = world.restore(&target, &name);
            goes_on_from(&next, captured);
            machine = Some(next);
        }
    }
    drop(machine);
}

#[test]
fn five_generations_of_whole_snapshots() {
    need!(host::kvm());
    five_generations(|_| false, false);
}

#[test]
fn five_generations_of_differences() {
    need!(host::kvm());
    five_generations(|_| true, false);
}

#[test]
fn five_generations_in_turn() {
    need!(host::kvm());
    five_generations(|number| number % 2 == 0, false);
}

#[test]
fn five_generations_of_clones() {
    need!(host::kvm());
    five_generations(|number| number % 2 == 1, true);
}

#[test]
fn pages_that_are_written_all_the_time_are_of_one_moment() {
    need!(host::kvm());
    let world = World::new();
    let source = world.guest("source", "dirty pages=2048 mib=64 every=1").start();
    source.says_times("dirty: round", 2);
    world.create("source", "whole", &[]);
    source.says_times("dirty: round", 4);
    world.create("source", "part", &["--base", &world.text("whole")]);
    drop(source);
    // A page of another moment has another number of rounds: the guest says CORRUPT.
    for snapshot in ["whole", "part"] {
        let copy = world.restore(snapshot, "copy");
        copy.says_times("dirty: round", 3);
        world.create("copy", &format!("{snapshot}-2"), &["--base", &world.text(snapshot)]);
        let second = world.restore(&format!("{snapshot}-2"), "second");
        second.says_times("dirty: round", 3);
        for said in [copy.said(), second.said()] {
            assert!(!said.contains("CORRUPT") && !said.contains("FAIL"), "{said}");
        }
    }
}

#[test]
fn a_snapshot_stands_without_its_machine_and_in_another_place() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    fs::create_dir(world.path("here")).expect("a directory");
    world.create("source", "here/one", &[]);
    world.create("source", "here/two", &["--base", &world.text("here/one")]);
    assert_eq!(source.kill().status, -libc::SIGKILL);
    fs::rename(world.path("here"), world.path("there")).expect("a directory");
    for name in ["there/one", "there/two"] {
        goes_on_from(&world.restore(name, "copy"), world.captured(name, at));
    }
    // A whole copy that was copied rather than moved, sparse or not.
    fs::create_dir(world.path("copied")).expect("a directory");
    for file in fs::read_dir(world.path("there/one")).expect("a snapshot").flatten() {
        fs::copy(file.path(), world.path("copied").join(file.file_name())).expect("a file");
    }
    fs::remove_dir_all(world.path("there")).expect("a directory");
    goes_on_from(&world.restore("copied", "copy"), world.captured("copied", at));
}

#[test]
fn a_paused_machine_is_saved_and_stays_paused() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.does(&["pause", "source"]);
    world.create("source", "one", &[]);
    let said = source.said();
    world.create("source", "two", &[]);
    assert_eq!(world.captured("one", at), world.captured("two", at), "nothing ran between the two");
    assert_eq!(source.said(), said);
    let copy = world.command_line(&["restore", &world.text("one"), "--name", "copy", "--paused"]).start();
    assert!(eventually(|| world.command(&["ps"]).out.contains("copy")));
    assert_eq!(copy.said(), "", "it was restored to stand still");
    world.does(&["resume", "copy", "source"]);
    goes_on_from(&copy, world.captured("one", at));
    goes_on_from(&source, 500);
}

#[test]
fn a_machine_ends_when_it_is_saved_if_it_is_to() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "one", &["--stop"]);
    let said = source.finish().ended(130, "stopped").out.clone();
    let captured = world.captured("one", at);
    let copy = world.restore("one", "source");
    goes_on_from(&copy, captured);
    // Nothing is lost between the last line before and the first one after.
    let last =
        said.lines().rev().find_map(|line| line.strip_prefix("counter ")?.split(' ').next()?.parse().ok());
    assert!(last.is_some_and(|last: u64| last <= captured + 500), "{last:?} {captured}");
}

#[test]
fn two_restores_at_once_from_one_snapshot() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "one", &[]);
    let copies = ["a", "b"].map(|name| world.restore("one", name));
    let captured = world.captured("one", at);
    for copy in &copies {
        goes_on_from(copy, captured);
    }
    world.does(&["snapshot", "verify", &world.text("one")]);
}

#[test]
fn saving_does_not_end_while_another_save_is_under_way() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    let targets: Vec<String> = (0..4).map(|number| world.text(&format!("s{number}"))).collect();
    let saving: Vec<_> = targets
        .iter()
        .map(|target| world.command_line(&["snapshot", "create", "source", target]).start())
        .collect();
    for save in saving {
        let ended = save.finish();
        assert_eq!(ended.status, 0, "{ended}");
    }
    for number in 0..4 {
        let name = format!("s{number}");
        goes_on_from(&world.restore(&name, "copy"), world.captured(&name, at));
    }
}
