//! The guest that counts: what it prints tells whether it goes on where it was saved.

use super::world::World;
use crate::common::eventually;
use crate::common::machine::{Machine, Running};

/// How far it counts between two lines.
pub const EVERY: u64 = 500;

/// A guest that counts for ever.
pub fn counting(world: &World, name: &str) -> Machine {
    world.guest(name, &format!("counter every={EVERY}"))
}

/// Waits for a few lines; gives the address of the counter.
#[track_caller]
pub fn address(machine: &Running) -> u64 {
    machine.says_times("\ncounter ", 4);
    let said = machine.said();
    let text = said.lines().find_map(|line| line.trim().strip_prefix("counter at ")).expect("an address");
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number")
}

/// Saves a guest that counts, which ends with that. Gives the address of the counter, and what is in it.
#[track_caller]
pub fn saved(world: &World, snapshot: &str) -> (u64, u64) {
    let source = counting(world, "source").start();
    let at = address(&source);
    world.create("source", snapshot, &["--stop"]);
    source.finish();
    (at, world.captured(snapshot, at))
}

/// What a counting guest has said: whole lines as (counter, timer interrupts).
fn counts(said: &str) -> Vec<(u64, u64)> {
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        let (counter, timer) = line.trim().strip_prefix("counter ")?.split_once(" timer ")?;
        Some((counter.parse().ok()?, timer.parse().ok()?))
    };
    whole.lines().filter_map(line).collect()
}

/// A restored guest goes on from `captured`, loses and repeats nothing, and its timer still ticks.
#[track_caller]
pub fn goes_on_from(machine: &Running, captured: u64) {
    machine.says_times("\ncounter ", 5);
    went_on_from(|| machine.said(), captured);
}

/// The same of all that a guest has said, once it is enough. How many lines it says between two ticks is the host's affair.
#[track_caller]
pub fn went_on_from(said: impl Fn() -> String, captured: u64) {
    let ticked =
        |counts: &[(u64, u64)]| counts.len() >= 5 && counts.last().map(|last| last.1) > Some(counts[0].1);
    let wrong = |said: &str| said.contains("CORRUPT") || said.contains("FAIL");
    assert!(eventually(|| ticked(&counts(&said())) || wrong(&said())), "the timer stands still\n{}", said());
    let said = said();
    assert!(!wrong(&said), "{said}");
    let counts = counts(&said);
    let first = counts.first().expect("a line").0;
    // The line that was under way when it was saved may have been half printed.
    assert!((captured..=captured + 2 * EVERY).contains(&first), "{first} after {captured}\n{said}");
    for pair in counts.windows(2) {
        assert_eq!(pair[0].0 + EVERY, pair[1].0, "{said}");
        assert!(pair[0].1 <= pair[1].1, "{said}");
    }
}
