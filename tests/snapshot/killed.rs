//! Whoever is killed, and whenever: a snapshot is whole or absent, and disks are as they were at some moment.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rvmm::sys::user::Process;

use super::counter::{address, counting, goes_on_from};
use super::world::{World, refused};
use crate::common::{eventually, host};
use crate::need;

/// Bytes that the guest writes at each end of its disk in each round.
const END: usize = 64 * 512;

/// Which rounds wrote the 8-byte words of one end; the last end has them inverted. `None` is the disk as it was.
fn rounds(bytes: &[u8], inverted: bool) -> Vec<Option<u64>> {
    // The inverse of the factor in the guest's pattern, by Newton's way.
    let factor: u64 = 0x9e37_79b9_7f4a_7c15;
    let inverse =
        (0..6).fold(1u64, |inverse, _| inverse.wrapping_mul(2u64.wrapping_sub(factor.wrapping_mul(inverse))));
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let seed = |(at, word): (usize, u64)| {
        let seed = word.wrapping_mul(inverse).wrapping_sub(8 * at as u64);
        (word != 0xa5a5_a5a5_a5a5_a5a5).then_some(if inverted { !seed } else { seed })
    };
    let mut rounds: Vec<_> = words.enumerate().map(seed).collect();
    rounds.sort_unstable();
    rounds.dedup();
    rounds
}

/// No round is lost that the guest had flushed: it flushes each before the next. What is not flushed may be there in any order.
#[track_caller]
fn consistent(disk: &Path) {
    let bytes = fs::read(disk).expect("a disk");
    let (first, last) = (rounds(&bytes[..END], false), rounds(&bytes[bytes.len() - END..], true));
    // In the middle of a write there are two at an end.
    let all: Vec<u64> = first.iter().chain(&last).map(|round| round.unwrap_or(0)).collect();
    let (low, high) = (all.iter().min().expect("a round"), all.iter().max().expect("a round"));
    assert!(high - low <= 1, "rounds {first:?} and {last:?}");
    assert!(first.len() <= 2 && last.len() <= 2, "{first:?} and {last:?}");
}

#[test]
fn the_machine_at_many_instants() {
    need!(host::kvm());
    let world = World::new();
    let (mut whole, instants) = (0, 14);
    for instant in 0..instants {
        let disk = world.raw("disk", 1 << 20);
        let test = "blk mode=write rounds=1000000 seed=1 sectors=64";
        let source = world.guest("source", test).disk(&disk, "").start();
        source.says("blk: 2048 sectors");
        // Every other time there is an overlay already.
        if instant % 2 == 1 {
            world.create("source", "zero", &[]);
        }
        let save = world.command_line(&["snapshot", "create", "source", &world.text("one")]).start();
        sleep(Duration::from_millis(4 * instant * instant));
        source.kill();
        let saved = save.finish();
        if world.path("one").exists() {
            whole += 1;
            world.does(&["snapshot", "verify", &world.text("one")]);
            let copy = world.restore("one", "copy");
            world.inspect("copy");
            world.create("copy", "two", &["--stop"]);
            let ended = copy.finish();
            assert!(!ended.out.contains("FAIL"), "{ended}");
            fs::remove_dir_all(world.path("two")).expect("a directory");
            fs::remove_dir_all(world.path("one")).expect("a directory");
        } else {
            refused(&saved, &["source"]);
        }
        // Who opens the disk next makes it whole.
        world.guest("merge", "hello").disk(&disk, "").run().passed("hello");
        assert_eq!(world.list("disk"), ["disk"]);
        consistent(&disk);
        let _ = fs::remove_dir_all(world.path("zero"));
    }
    eprintln!("{whole} of {instants} snapshots were whole");
}

#[test]
fn the_one_who_asked() {
    need!(host::kvm());
    let world = World::new();
    let source = world.guest("source", "dirty pages=16384 mib=64 every=1").start();
    source.says("dirty: ready");
    for wait in [0, 10, 40] {
        let save = world.command_line(&["snapshot", "create", "source", &world.text("one")]).start();
        assert!(eventually(|| !world.list(".one.partial").is_empty() || world.path("one").exists()));
        sleep(Duration::from_millis(wait));
        save.kill();
        // It was only waiting: the machine ends what it has begun.
        assert!(eventually(|| world.path("one").exists()));
        world.does(&["snapshot", "verify", &world.text("one")]);
        fs::remove_dir_all(world.path("one")).expect("a directory");
        assert!(eventually(|| world.list(".one").is_empty()));
    }
    let said = source.said().matches("dirty: round").count();
    source.says_times("dirty: round", said + 2);
    assert!(!source.said().contains("CORRUPT"));
}

#[test]
fn the_copy_of_its_memory() {
    need!(host::kvm());
    let world = World::new();
    let source = world.guest("source", "dirty pages=16384 mib=64 every=1").start();
    source.says("dirty: ready");
    let mut refusals = 0;
    for wait in [0, 1, 5, 20, 50] {
        let save = world.command_line(&["snapshot", "create", "source", &world.text("one")]).start();
        // The only child of a machine without a network.
        let mut children = Vec::new();
        assert!(eventually(|| {
            let held = |pid| {
                let child = Process::open(pid).ok()?;
                // It is still the one that was meant.
                host::children(source.pid()).contains(&pid).then_some(child)
            };
            children = host::children(source.pid()).into_iter().filter_map(held).collect();
            !children.is_empty() || world.path("one").exists()
        }));
        sleep(Duration::from_millis(wait));
        // One that has ended since is gone. Its number may be that of anybody now: other tests start hundreds of threads a second.
        for child in children {
            let _ = child.kill();
        }
        let saved = save.finish();
        if world.path("one").exists() {
            assert_eq!(saved.status, 0, "{saved}");
            world.does(&["snapshot", "verify", &world.text("one")]);
            fs::remove_dir_all(world.path("one")).expect("a directory");
        } else {
            refused(&saved, &["memory"]);
            refusals += 1;
        }
        assert!(world.list(".one").is_empty(), "nothing is left");
    }
    eprintln!("{refusals} of 5 snapshots were not to be had");
    let said = source.said().matches("dirty: round").count();
    source.says_times("dirty: round", said + 2);
    world.create("source", "one", &[]);
    assert!(!source.said().contains("CORRUPT"));
}

#[test]
fn two_at_once() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = counting(&world, "source").disk(&disk, "").start();
    let other = counting(&world, "other").start();
    let at = address(&source);
    address(&other);
    let create = |machine: &str, target: &str| {
        world.command_line(&["snapshot", "create", machine, &world.text(target)]).start()
    };
    // One machine, two places.
    let [one, two] = [create("source", "one"), create("source", "two")].map(|save| save.finish());
    assert_eq!((one.status, two.status), (0, 0), "{one}\n{two}");
    // One place: of one machine, and of two.
    for (round, pair) in [["source", "source"], ["source", "other"]].iter().enumerate() {
        let target = format!("same{round}");
        let ended = pair.map(|machine| create(machine, &target)).map(|save| save.finish());
        let won = ended.iter().filter(|ended| ended.status == 0).count();
        assert_eq!(won, 1, "{}\n{}", ended[0], ended[1]);
        let lost = ended.iter().find(|ended| ended.status != 0).expect("one that lost");
        refused(lost, &[&target, "already"]);
        world.does(&["snapshot", "verify", &world.text(&target)]);
        drop(world.restore(&target, "copy"));
    }
    assert!(world.list(".").is_empty(), "{:?}", world.list("."));
    for name in ["one", "two"] {
        world.does(&["snapshot", "verify", &world.text(name)]);
        goes_on_from(&world.restore(name, "copy"), world.captured(name, at));
    }
    goes_on_from(&source, 500);
}
