//! What is another one when a machine goes on: links, addresses, disks, names. Each test with taps has a network of its
//! own.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use super::counter::{address, counting, goes_on_from, saved};
use super::disk::{end, has_all};
use super::world::{World, refused};
use crate::common::machine::Running;
use crate::common::{eventually, host, world};
use crate::need;

/// Feature bits of a network device (virtio 1.2, 5.1.3).
const CSUM: u64 = 1;
const HOST_TSO4: u64 = 1 << 11;
const STATUS: u64 = 1 << 16;

/// A machine on a tap that says its address and agrees on `features`.
fn on_tap(world: &World, tap: &str, features: u64, options: &[&str]) -> Running {
    let guest = world.guest("source", &format!("mac features={features}"));
    let machine = options.iter().fold(guest, |guest, option| guest.arg(option));
    let machine = machine.option("--net", format!("tap={tap}")).start();
    machine.says("\nmac:");
    machine
}

/// The address that the configuration of a machine has.
fn mac(world: &World, name: &str) -> String {
    let told = world.inspect(name);
    told["config"]["network-interfaces"][0]["guest_mac"].as_str().expect("an address").into()
}

/// An address as the guest says it.
fn said(mac: &str) -> String {
    let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
    let words: Vec<String> = bytes.map(|byte| format!("{byte:#x}")).collect();
    format!("mac: {}\n", words.join(" "))
}

#[test]
fn addresses_of_restored_machines_and_clones() {
    need!(host::kvm(), world::offered());
    if !host::in_own_network("replaced::addresses_of_restored_machines_and_clones") {
        return;
    }
    let world = World::new();
    let source = on_tap(&world, "tap0", 0, &[]);
    let first = mac(&world, "source");
    source.says(&said(&first));
    world.create("source", "one", &[]);
    let mut known = BTreeSet::from([first.clone()]);

    // The tap is taken, and says so by name.
    let error = world.command(&["restore", &world.text("one")]);
    refused(&error, &["tap0", "in use"]);

    // While the source runs, its copy has another address, and the guest is told.
    let copy = world.restore_with("one", "copy", &["--net", "tap=tap1"]);
    assert!(known.insert(mac(&world, "copy")));
    copy.says(&said(&mac(&world, "copy")));
    let told = world.restore_with(
        "one",
        "told",
        &["--rename", "tap0=tap2", "--net", "tap=tap2,mac=02:00:00:00:00:07"],
    );
    told.says("mac: 0x2 0x0 0x0 0x0 0x0 0x7\n");
    assert_eq!(mac(&world, "told"), "02:00:00:00:00:07");
    drop((copy, told));

    let console = format!("file={}", world.text("%n.log"));
    let clones =
        ["clone", &world.text("one"), "-n", "3", "--name", "w", "--net", "tap=t%i", "--console", &console];
    world.does(&clones);
    for number in 1..=3 {
        let name = format!("w-{number}");
        let address = mac(&world, &name);
        let text = || fs::read_to_string(world.path(&format!("{name}.log"))).unwrap_or_default();
        assert!(eventually(|| text().contains(&said(&address))), "{address} in {}", text());
        assert!(known.insert(address), "{name} has the address of another one");
    }
    world.does(&["stop", "--all", "--force"]);
    source.finish();

    // Nobody has it any more: the machine goes on as itself, and its guest hears of no change.
    let again = world.restore_with("one", "again", &[]);
    assert_eq!(mac(&world, "again"), first);
    // A snapshot of it has its address, whatever it was restored with.
    world.create("again", "two", &["--stop"]);
    assert!(!again.finish().out.contains("mac:"), "the address is the one that the driver knows");
    let other = world.restore_with("two", "other", &["--rename", "tap0=tap9"]);
    assert_eq!(mac(&world, "other"), first);
    let tap = &world.inspect("other")["config"]["network-interfaces"][0]["host_dev_name"];
    assert_eq!(tap, "tap9");
    drop(other);
}

#[test]
fn a_link_that_is_down_and_up_again() {
    need!(host::kvm(), world::offered());
    if !host::in_own_network("replaced::a_link_that_is_down_and_up_again") {
        return;
    }
    let world = World::new();
    let source = on_tap(&world, "tap0", STATUS | CSUM | HOST_TSO4, &[]);
    let before = mac(&world, "source");
    let line = said(&before);
    source.says(&line);
    world.create("source", "one", &["--stop"]);
    source.finish();
    // Whatever the guest uses, it goes on without a link, and hears of it.
    let copy = world.restore_with("one", "copy", &["--net", "none"]);
    copy.says(&line.replace('\n', ", down\n"));
    world.create("copy", "two", &["--stop"]);
    copy.finish();
    world.restore_with("two", "again", &["--net", "tap=tap1"]).says(&line);
    // Nothing has changed for this one.
    let still = world.restore_with("two", "still", &[]);
    assert_eq!(mac(&world, "still"), before);
    world.does(&["stop", "--force", "still"]);
    assert!(!still.finish().out.contains("mac:"));
}

#[test]
fn a_link_that_lacks_what_the_guest_uses() {
    need!(host::kvm(), world::offered(), host::program("passt"));
    if !host::in_own_network("replaced::a_link_that_lacks_what_the_guest_uses") {
        return;
    }
    let world = World::new();
    let source = on_tap(&world, "tap0", CSUM | HOST_TSO4, &[]);
    source.says("mac: features 0x821");
    world.create("source", "one", &["--stop"]);
    source.finish();
    let user = world.command(&["restore", &world.text("one"), "--net", "user"]);
    refused(&user, &["eth0", "VIRTIO_NET_F_HOST_TSO4", "--portable"]);
    assert!(!user.err.contains("VIRTIO_NET_F_CSUM"), "{user}");
    drop(world.restore_with("one", "copy", &["--net", "tap=tap1"]));

    // A machine that was run for it goes anywhere.
    let source = on_tap(&world, "tap0", CSUM | HOST_TSO4, &["--portable"]);
    source.says("mac: features 0x20");
    world.create("source", "two", &["--stop"]);
    source.finish();
    let copy = world.restore_with("two", "copy", &["--net", "user"]);
    assert!(world.inspect("copy")["config"]["network-interfaces"][0]["user"].is_object());
    drop(copy);
}

#[test]
fn what_is_not_there_cannot_be_replaced() {
    need!(host::kvm());
    let world = World::new();
    saved(&world, "one");
    let one = world.text("one");
    for (option, value, words) in [
        ("--net", "tap=tap0", &["eth0", "none"][..]),
        ("--disk", "vda=/dev/null", &["vda", "none"]),
        ("--disk", "vda", &["ID=PATH"]),
        ("--rename", "tap0=tap1", &["tap0", "bare"]),
        ("--rename", "tap0", &["OLD=NEW"]),
        ("--rename", "tap0=", &["OLD=NEW"]),
    ] {
        refused(&world.command(&["restore", &one, option, value]), words);
        refused(&world.command(&["clone", &one, option, value]), words);
    }
    refused(&world.command(&["clone", &one, "-n", "2", "--net", "tap=a,mac=02:00:00:00:00:01"]), &["mac"]);
    for place in ["file", "socket"] {
        let console = format!("{place}={}", world.text("log"));
        let words = [&*world.text("log"), "Only one machine", "%n", "%i"];
        refused(&world.command(&["clone", &one, "-n", "2", "--console", &console]), &words);
        assert!(!world.path("log").exists());
    }
    world.does(&["clone", &one, "-n", "2", "--name", "quiet", "--paused", "--console", "file=/dev/null"]);
}

#[test]
fn a_disk_that_is_not_in_the_snapshot() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = counting(&world, "source").disk(&disk, ",ro,id=data").start();
    let at = address(&source);
    world.create("source", "one", &[]);
    let captured = world.captured("one", at);
    // Who only reads it needs it for itself no more than the source does.
    goes_on_from(&world.restore("one", "copy"), captured);
    drop(source);

    fs::write(world.path("small"), vec![0xa5; 1 << 19]).expect("a disk");
    let small = format!("data={}", world.text("small"));
    let refuse = |options: &[&str], words: &[&str]| {
        refused(&world.command(&[&["restore", &world.text("one")], options].concat()), words);
    };
    refuse(&["--disk", &small], &["data", "1048576", "524288"]);
    // Written to since: its memory may have what is not on the disk any more.
    fs::write(&disk, vec![0x5a; 1 << 20]).expect("a disk");
    refuse(&[], &["data", "changed", "--disk data=PATH"]);
    let same = format!("data={}", disk.display());
    goes_on_from(&world.restore_with("one", "copy", &["--disk", &same]), captured);
    let moved = world.path("moved");
    fs::rename(&disk, &moved).expect("a disk");
    refuse(&[], &["data", &disk.to_string_lossy()]);
    let moved = format!("data={}", moved.display());
    goes_on_from(&world.restore_with("one", "copy", &["--disk", &moved]), captured);
    let rename = format!("{}={}", disk.display(), world.text("moved"));
    refuse(&["--rename", &rename], &["data", "changed"]);
}

#[test]
fn a_disk_in_the_place_of_the_snapshots() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source =
        world.guest("source", "blk mode=write until=typed seed=1 sectors=64").disk(&disk, "").start();
    source.says("blk: 2048 sectors");
    world.create("source", "one", &[]);
    drop(source);
    let other = world.raw("other", 1 << 20);
    let option = format!("vda={}", other.display());
    let copy = world.restore_with("one", "copy", &["--disk", &option]);
    assert!(eventually(|| fs::read(&other).is_ok_and(|bytes| bytes.iter().any(|&byte| byte != 0xa5))));
    // It is the user's own disk now: nobody else gets it, and what is in the snapshot stays.
    refused(&world.command(&["restore", &world.text("one"), "--disk", &option]), &["other", "in use"]);
    let path = world.inspect("copy")["config"]["drives"][0]["path_on_host"].clone();
    assert_eq!(path, world.text("other"));
    drop(copy);
}

#[test]
fn overlays_that_are_kept() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let guest = "blk mode=write until=typed seed=1 sectors=64";
    let source = world.guest("source", guest).arg("--keep-overlay").disk(&disk, "");
    let source = source.stdin(Stdio::piped()).start();
    source.says("blk: 2048 sectors");
    world.create("source", "one", &[]);
    let rounds = end(source);
    assert_eq!(world.list("disk").len(), 2, "{:?}", world.list("disk"));
    has_all(&world, rounds);
    assert_eq!(world.list("disk"), ["disk"], "who opens the disk next merges them");
}

#[test]
fn somebody_elses_snapshot_has_nothing_of_this_host() {
    need!(host::kvm(), world::offered());
    let world = World::new();
    let (disk, data) = (world.raw("disk", 1 << 20), world.raw("data", 1 << 20));
    let source = counting(&world, "source").disk(&disk, "").disk(&data, ",ro,id=data");
    let source = source.option("--vsock", world.text("channel")).start();
    let at = address(&source);
    world.create("source", "one", &["--stop"]);
    source.finish();
    let (one, captured) = (world.text("one"), world.captured("one", at));
    let paths = |name: &str| {
        let told = world.inspect(name)["config"].clone();
        let drive = |index: usize| told["drives"][index]["path_on_host"].clone();
        (
            drive(0),
            drive(1),
            told["vsock"][0]["uds_path"].clone(),
            told["boot-source"]["kernel_image_path"].clone(),
        )
    };

    // It names them, and they are used.
    let trusted = world.restore("one", "trusted");
    let (own, named, channel, kernel) = paths("trusted");
    assert_eq!((named, channel), (world.text("data").into(), world.text("channel").into()));
    assert!(kernel.as_str().is_some_and(|kernel| kernel.ends_with("bare")), "{kernel}");
    drop(trusted);

    for command in ["restore", "clone"] {
        refused(&world.command(&[command, &one, "--foreign"]), &["`data`", "--disk"]);
        refused(&world.command(&[command, &one, "--foreign", "--rename", "/a=/b"]), &["--rename"]);
    }
    let other = world.raw("other", 1 << 20);
    let replaced = format!("data={}", other.display());
    let given = ["--foreign", "--disk", &replaced];
    let copy = world.restore_with("one", "copy", &given);
    goes_on_from(&copy, captured);
    let (first, second, channel, kernel) = paths("copy");
    assert_eq!((&first, second), (&own, world.text("other").into()));
    assert!(channel.as_str().is_none_or(|channel| !channel.contains("channel")), "{channel}");
    assert_eq!(kernel, "");
    drop(copy);
    world.does(&[&["clone", &one, "--name", "w"], &given[..]].concat());
    assert_eq!(paths("w-1").3, "");
    world.does(&["stop", "--all", "--force"]);

    // A restart would need a kernel.
    let source = world.guest("source", "smp cpus=2 end=reset").cpus(2).start();
    source.says("OK smp");
    world.create("source", "two", &["--stop"]);
    source.finish();
    let copy = world.restore_with("two", "copy", &["--foreign"]);
    let ended = copy.finish();
    assert!(ended.out.matches("OK smp").count() <= 1, "{ended}");
    assert_eq!(ended.cause(), "reboot");
}
