//! Machines of whose memory the host has put a part into swap space.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use super::world::{World, memory};
use crate::common::machine::Machine;
use crate::common::swap::{Swap, push, swapped};
use crate::common::{eventually, host};
use crate::need;

/// A guest that writes to every second page of 24 MiB, round after round. The others it has written once.
const GUEST: &str = "dirty pages=3072 mib=24 fill=1 every=1";
/// How much is in swap space at least of a machine that has written 12 MiB.
const MOST: u64 = 9 << 20;

/// Another way to start a machine.
type How = fn(Machine) -> Machine;

/// The machine `name`, process `pid`, which stands still, is saved with and without swapped pages, whole and as the difference from
/// each of `bases`: all describe the same, and differences hold exactly what differs. They are `NAME-0` and so on.
#[track_caller]
fn is_saved_exactly(world: &World, swap: &Swap, name: &str, pid: u32, bases: &[&str]) {
    world.does(&["pause", name]);
    world.create(name, &format!("{name}-plain"), &[]);
    let plain = memory(&world.path(&format!("{name}-plain")));
    swap.out(pid, MOST);
    world.create(name, &format!("{name}-whole"), &[]);
    assert!(memory(&world.path(&format!("{name}-whole"))) == plain, "{name}, whole");
    for (number, base) in bases.iter().enumerate() {
        let target = format!("{name}-{number}");
        let report = world.create(name, &target, &["--base", &world.text(base)]);
        assert!(memory(&world.path(&target)) == plain, "{name} on {base}");
        let below = memory(&world.path(base));
        let pages = plain.as_chunks::<4096>().0.iter().zip(below.as_chunks::<4096>().0);
        let differ = pages.filter(|(page, below)| page != below).count() as u64;
        let told = |key: &str| report[key].as_u64().expect("bytes");
        assert_eq!(told("data_bytes") + told("zero_bytes"), differ * 4096, "{name} on {base}");
        world.does(&["snapshot", "verify", &world.text(&target)]);
    }
    // The copies were read, and the machine has nothing back.
    assert!(swapped(pid) >= MOST, "{} bytes", swapped(pid));
    world.does(&["resume", name]);
}

/// Booted, restored in each way and cloned.
fn all_are_saved_exactly(how: How) {
    let swap = Swap::new();
    need!(swap.as_ref().map(drop).map_err(String::clone));
    let (swap, world) = (swap.expect("swap space"), World::new());
    let is_right = |said: String| assert!(!said.contains("CORRUPT") && !said.contains("FAIL"), "{said}");
    let source = how(world.guest("booted", GUEST).memory("48M")).start();
    source.says_times("dirty: round", 1);
    world.create("booted", "first", &[]);
    source.says_times("dirty: round", 3);
    is_saved_exactly(&world, &swap, "booted", source.pid(), &["first"]);
    source.says_times("dirty: round", source.said().matches("dirty: round").count() + 2);
    is_right(source.kill().out);

    for mode in ["cow", "copy", "lazy"] {
        let arguments = ["restore", &world.text("booted-0"), "--name", mode, "--memory-mode", mode];
        let copy = how(world.command_line(&arguments)).start();
        copy.says_times("dirty: round", 2);
        is_saved_exactly(&world, &swap, mode, copy.pid(), &["booted-0", "first", "booted-whole"]);
        copy.says_times("dirty: round", copy.said().matches("dirty: round").count() + 2);
        is_right(copy.kill().out);
    }

    let console = format!("file={}", world.text("%n.log"));
    let said =
        |number: usize| fs::read_to_string(world.path(&format!("clone-{number}.log"))).unwrap_or_default();
    let from = world.text("cow-0");
    let arguments = ["clone", &from, "-n", "2", "--name", "clone", "--console", &console, "--json"];
    let cloned = how(world.command_line(&arguments)).run();
    let told: Value = serde_json::from_str(&cloned.out).expect("JSON");
    for number in [1, 2] {
        let name = format!("clone-{number}");
        assert!(eventually(|| said(number).matches("dirty: round").count() >= 2), "{}", said(number));
        let pid = told["machines"][number - 1]["pid"].as_u64().expect("a process") as u32;
        is_saved_exactly(&world, &swap, &name, pid, &["cow-0", "first"]);
        let copy = world.restore(&format!("{name}-1"), "again");
        copy.says_times("dirty: round", 2);
        is_right(copy.kill().out + &said(number));
    }
}

#[test]
fn all_machines_are_saved_exactly() {
    need!(host::kvm());
    all_are_saved_exactly(|machine| machine);
}

#[test]
fn all_machines_are_saved_exactly_by_older_kernels() {
    need!(host::kvm());
    all_are_saved_exactly(Machine::without_scan);
}

/// Ends a thread, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_host_swaps_while_a_machine_runs_and_is_saved() {
    need!(host::kvm());
    let swap = Swap::new();
    need!(swap.as_ref().map(drop).map_err(String::clone));
    let world = World::new();
    let source = world.guest("source", GUEST).memory("48M").start();
    source.says_times("dirty: round", 1);
    let (over, pid) = (AtomicBool::new(false), source.pid());
    let most = thread::scope(|scope| {
        let ends = Ends(&over);
        let host = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                // And the copy that is being read.
                [vec![pid], host::children(pid)].concat().into_iter().for_each(push);
                most = most.max(swapped(pid));
            }
            most
        });
        world.create("source", "whole", &[]);
        source.says_times("dirty: round", source.said().matches("dirty: round").count() + 1);
        world.create("source", "part", &["--base", &world.text("whole")]);
        drop(ends);
        host.join().expect("no panic")
    });
    assert!(most >= MOST, "{most} bytes");
    source.says_times("dirty: round", source.said().matches("dirty: round").count() + 2);
    let mut said = vec![source.kill().out];
    for snapshot in ["whole", "part"] {
        let copy = world.restore(snapshot, "copy");
        copy.says_times("dirty: round", 2);
        said.push(copy.kill().out);
    }
    assert!(said.iter().all(|said| !said.contains("CORRUPT") && !said.contains("FAIL")), "{said:?}");
}
