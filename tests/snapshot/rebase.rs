//! Chains of snapshots that are folded, and lists of snapshots.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::counter::{address, counting, goes_on_from};
use super::world::{World, memory, refused};
use crate::common::{eventually, host};
use crate::need;

/// A chain `s1`, `s2`, `s3`, the names of which are the machine's in its course; where it counts.
fn three(world: &World) -> u64 {
    let disk = world.raw("disk", 1 << 20);
    let source = counting(world, "source").memory("64M").disk(&disk, "").start();
    let at = address(&source);
    world.create("source", "s1", &[]);
    world.create("source", "s2", &["--base", &world.text("s1")]);
    world.create("source", "s3", &["--base", &world.text("s2"), "--stop"]);
    source.finish();
    at
}

/// What `ls --json` tells of a snapshot.
fn listed(world: &World, name: &str) -> Value {
    let list: Value =
        serde_json::from_str(&world.does(&["snapshot", "ls", &world.text(""), "--json"])).expect("JSON");
    let path = world.text(name);
    let lines = list.as_array().expect("a list");
    lines.iter().find(|line| line["path"] == *path).expect("the snapshot").clone()
}

#[test]
fn folded_on_nothing_and_on_another_base() {
    need!(host::kvm());
    let world = World::new();
    let at = three(&world);
    let (path, before, captured) = (world.path("s3"), memory(&world.path("s3")), world.captured("s3", at));
    let created = listed(&world, "s3")["created"].clone();
    // A machine that has it mapped runs on, and one that stands on it stays right.
    let copy = world.restore("s3", "copy");
    copy.says_times("\ncounter ", 1);
    world.create("copy", "s4", &["--base", &world.text("s3")]);
    let upper = memory(&world.path("s4"));

    let report =
        world.does(&["snapshot", "rebase", &world.text("s3"), "--onto", &world.text("s1"), "--json"]);
    let report: Value = serde_json::from_str(&report).expect("a report");
    assert!(report["data_bytes"].as_u64().is_some_and(|bytes| bytes > 0 && bytes < 1 << 20), "{report}");
    assert_eq!(listed(&world, "s3")["parent"], world.text("s3/../s1"));
    fs::remove_dir_all(world.path("s2")).expect("a directory");
    assert!(memory(&path) == before && memory(&world.path("s4")) == upper);

    world.does(&["snapshot", "rebase", &world.text("s3")]);
    fs::remove_dir_all(world.path("s1")).expect("a directory");
    assert!(memory(&path) == before && memory(&world.path("s4")) == upper);
    assert_eq!((&listed(&world, "s3")["parent"], &listed(&world, "s3")["created"]), (&Value::Null, &created));
    assert!(world.list(".s").is_empty(), "{:?}", world.list(".s"));
    for name in ["s3", "s4"] {
        world.does(&["snapshot", "verify", &world.text(name)]);
    }
    goes_on_from(&copy, captured);
    world.create("copy", "s5", &["--base", &world.text("s3")]);
    let later = world.captured("s5", at);
    drop(copy);
    goes_on_from(&world.restore("s5", "last"), later);
    goes_on_from(&world.restore("s3", "again"), captured);
}

#[test]
fn what_cannot_be_folded_stays_as_it_is() {
    need!(host::kvm());
    let world = World::new();
    three(&world);
    let refuse = |options: &[&str], words: &[&str]| {
        refused(&world.command(&[&["snapshot", "rebase"], options].concat()), words);
    };
    let (s1, s3) = (world.text("s1"), world.text("s3"));
    refuse(&[&s1, "--onto", &s3], &["s1", "s3", "stands on it"]);
    refuse(&[&s1, "--onto", &s1], &["s1", "stands on it"]);
    refuse(&[&world.text("s9")], &["s9"]);
    refuse(&[&s3, "--onto", &world.text("s9")], &["s9"]);
    // Damage is not carried over.
    let memory = fs::read(world.path("s2/memory")).expect("pages");
    let mut changed = memory.clone();
    let at = changed.iter().position(|&byte| byte != 0).expect("a byte");
    changed[at] ^= 1;
    fs::write(world.path("s2/memory"), &changed).expect("pages");
    refuse(&[&s3], &["s2", "damaged"]);
    fs::write(world.path("s2/memory"), &memory).expect("pages");
    assert!(world.list(".s").is_empty());
    world.does(&["snapshot", "rebase", &s3]);
}

#[test]
fn killed_at_any_instant() {
    need!(host::kvm());
    let world = World::new();
    three(&world);
    let before = memory(&world.path("s3"));
    let mut done = 0;
    for wait in (0..12).map(|round| round * round * 2) {
        let begun = world.command_line(&["snapshot", "rebase", &world.text("s3")]).start();
        std::thread::sleep(Duration::from_millis(wait));
        done += usize::from(begun.kill().status == 0);
        assert!(memory(&world.path("s3")) == before, "killed after {wait} ms");
        world.does(&["snapshot", "verify", &world.text("s3")]);
    }
    eprintln!("{done} of 12 were done before they were killed");
    world.does(&["snapshot", "rebase", &world.text("s3")]);
    assert!(world.list(".s").is_empty(), "{:?}", world.list(".s"));
}

#[test]
fn lists_say_what_is_there() {
    need!(host::kvm());
    let world = World::new();
    three(&world);
    fs::write(world.path("s2/bundle.json"), "{}").expect("a file");
    let table = world.does(&["snapshot", "ls", &world.text("")]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    for (line, words) in
        lines[1..].iter().zip([&["/s1 ", " 64M ", " - "][..], &["/s2 ", "damaged"], &["/s3 ", " s2 "]])
    {
        assert!(words.iter().all(|word| line.contains(word)), "{words:?} in {line}");
    }
    let one = listed(&world, "s1");
    assert_eq!((&one["ram_bytes"], &one["format"]), (&Value::from(64 << 20), &Value::from(2)));
    assert!(one["disk_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20 && bytes < 32 << 20), "{one}");
    assert!(listed(&world, "s2")["error"].is_string());
    assert!(eventually(|| world.does(&["snapshot", "ls", &world.text("s1")]).lines().count() == 2));
    refused(&world.command(&["snapshot", "ls", &world.text("s9")]), &["s9"]);
}
