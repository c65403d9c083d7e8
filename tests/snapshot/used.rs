//! What a restored machine uses of its memory is recorded for the next one, which is the same without it.

use std::fs;
use std::time::SystemTime;

use rvmm::memory::image::USED_FILE;

use super::counter::{address, counting, goes_on_from, saved};
use super::world::{World, memory};
use crate::common::{eventually, host};
use crate::need;

/// A page of the guest's code, which begins at 1 MiB.
const CODE: u64 = (1 << 20) / 4096;

/// When a record was made, if it was.
fn made(world: &World, snapshot: &str) -> Option<SystemTime> {
    fs::metadata(world.path(snapshot).join(USED_FILE)).and_then(|record| record.modified()).ok()
}

/// The pages that are recorded.
fn recorded(world: &World, snapshot: &str) -> Vec<u64> {
    let bytes = fs::read(world.path(snapshot).join(USED_FILE)).expect("a record");
    let bits = &bytes[12..];
    (0..bits.len() as u64 * 8).filter(|page| bits[*page as usize / 8] & 1 << (page % 8) != 0).collect()
}

/// Restores a snapshot, which goes on from `captured`, and ends it so that it has time to record what it used.
#[track_caller]
fn restored(world: &World, snapshot: &str, captured: u64, options: &[&str]) -> String {
    let copy = world.restore_with(snapshot, "copy", options);
    goes_on_from(&copy, captured);
    copy.terminate();
    copy.finish().err
}

#[test]
fn it_is_recorded_beside_the_snapshot_that_was_restored() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    let at = address(&source);
    world.create("source", "s1", &[]);
    world.create("source", "s2", &["--base", &world.text("s1"), "--stop"]);
    source.finish();
    let (captured, before) = (world.captured("s2", at), memory(&world.path("s2")));
    restored(&world, "s2", captured, &[]);
    let pages = recorded(&world, "s2");
    assert!(pages.contains(&CODE), "{pages:?}");
    assert_eq!(made(&world, "s1"), None, "the one below is as it was");
    // The next one uses the same, and records nothing.
    let first = made(&world, "s2");
    restored(&world, "s2", captured, &[]);
    assert_eq!(made(&world, "s2"), first);
    assert!(memory(&world.path("s2")) == before);
    world.does(&["snapshot", "verify", &world.text("s2")]);
    // Memory that is not mapped is not waited for.
    restored(&world, "s1", world.captured("s1", at), &["--memory-mode", "copy"]);
    assert_eq!(made(&world, "s1"), None);
    let files = fs::read_dir(world.path("s2")).expect("a snapshot").flatten();
    let names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
}

#[test]
fn a_wrong_record_is_said_and_replaced() {
    need!(host::kvm());
    let world = World::new();
    let ((_, captured), record) = (saved(&world, "one"), world.path("one").join(USED_FILE));
    for wrong in [&b""[..], b"rvmm-use\x02\0\0\0", &[0xff; 100_000]] {
        fs::write(&record, wrong).expect("a record");
        let said = restored(&world, "one", captured, &[]);
        assert_eq!(said.matches(USED_FILE).count(), 1, "{said}");
        assert!(recorded(&world, "one").contains(&CODE));
    }
    // Every page, and a place where nothing can be put.
    let mut all = fs::read(&record).expect("a record");
    all[12..].fill(0xff);
    fs::write(&record, &all).expect("a record");
    assert!(!restored(&world, "one", captured, &[]).contains(USED_FILE));
    fs::remove_file(&record).expect("a record");
    fs::create_dir(&record).expect("a directory");
    assert!(restored(&world, "one", captured, &[]).contains(USED_FILE));
}

#[test]
fn clones_record_once() {
    need!(host::kvm());
    let world = World::new();
    let source = counting(&world, "source").start();
    source.says("counter");
    world.create("source", "one", &[]);
    let console = format!("file={}", world.text("%n.log"));
    world.does(&["clone", &world.text("one"), "-n", "3", "--name", "w", "--console", &console]);
    let said = || fs::read_to_string(world.path("w-1.log")).unwrap_or_default();
    assert!(eventually(|| said().matches("\ncounter ").count() >= 5), "{}", said());
    // In the order that tells whoever is late: the first one records at its end, or ten seconds after it began.
    world.does(&["stop", "--force", "w-1"]);
    assert!(eventually(|| made(&world, "one").is_some()));
    assert!(recorded(&world, "one").contains(&CODE));
    fs::remove_file(world.path("one").join(USED_FILE)).expect("a record");
    for number in [2, 3] {
        world.does(&["stop", "--force", &format!("w-{number}")]);
        assert_eq!(made(&world, "one"), None);
    }
    drop(source);
}
