//! Bundles that an earlier rvmm wrote go on here, or are refused by the name of what is missing (tests/golden/record made
//! them); those of a later one are refused by name.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rvmm::snapshot::bundle::Bundle;
use serde_json::{Value, json};

use super::counter::{EVERY, address, counting};
use super::hostile::{forge, try_restore};
use super::world::{World, refused};
use crate::common::machine::Running;
use crate::common::{eventually, host, skip};
use crate::need;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// What refuses a bundle of another kind of host by name.
const OF_ANOTHER_HOST: [&str; 3] = ["this one lacks", "KVM does not take", "cannot scale it"];

#[test]
fn those_of_earlier_versions_go_on() {
    need!(host::kvm());
    need!(host::program("tar").map(drop));
    let archives = fs::read_dir(GOLDEN).expect("golden bundles").flatten().map(|entry| entry.path());
    let archives: Vec<_> = archives.filter(|path| path.extension().is_some_and(|ext| ext == "gz")).collect();
    assert!(!archives.is_empty());
    let mut refusals = Vec::new();
    for archive in &archives {
        let world = World::new();
        host::run("tar", &["-C", &world.text(""), "-xzf", &archive.to_string_lossy()]);
        world.does(&["snapshot", "verify", &world.text("golden")]);
        let copy = world.restore("golden", "copy");
        if let Err(said) = goes_on(&copy) {
            let ended = copy.finish();
            let named = OF_ANOTHER_HOST.iter().any(|words| ended.err.contains(words));
            assert!(named, "{}: {said}\n{ended}", archive.display());
            refusals.push(format!("{}: {}", archive.display(), ended.err.trim()));
        }
    }
    if refusals.len() == archives.len() {
        skip(&format!("every bundle is of another kind of host: {}", refusals.join("; ")));
    }
}

/// The guest counts on, without an error; or the machine has ended.
fn goes_on(copy: &Running) -> Result<(), String> {
    let counts = |said: &str| said.matches("\ncounter ").count();
    if !eventually(|| counts(&copy.said()) >= 5 || !host::runs(copy.pid())) {
        return Err("it stands still".into());
    }
    let said = copy.said();
    if counts(&said) < 5 || said.contains("CORRUPT") || said.contains("FAIL") {
        return Err(said);
    }
    let number = |line: &str| line.strip_prefix("counter ")?.split(' ').next()?.parse::<u64>().ok();
    // The last line may be on its way.
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let numbers: Vec<_> = whole.lines().filter_map(number).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + EVERY == pair[1]), "{said}");
    Ok(())
}

/// A bundle with `format` in its manifest, whose digest is right.
fn reformat(bundle: &Path, format: u32) {
    rewrite(bundle, |manifest| manifest["format"] = json!(format));
}

/// Changes what a bundle says of itself; its digest is right.
fn rewrite(bundle: &Path, change: impl FnOnce(&mut Value)) {
    let path = bundle.join("bundle.json");
    let sealed: Value = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    let mut inner = sealed["bundle"].clone();
    change(&mut inner);
    let text = serde_json::to_string(&inner).expect("JSON");
    let digest = blake3::hash(text.as_bytes()).to_hex();
    fs::write(&path, format!(r#"{{"digest":"{digest}","bundle":{text}}}"#)).expect("a manifest");
}

/// A world with a small machine that was saved in `one`.
fn saved() -> World {
    let world = World::new();
    let source = counting(&world, "source").memory("16M").start();
    address(&source);
    world.create("source", "one", &["--stop"]);
    drop(source);
    world
}

#[test]
fn those_of_later_versions_are_refused_by_name() {
    need!(host::kvm());
    let world = saved();
    let original = world.path("one");
    let state: Value =
        serde_json::from_slice(&fs::read(original.join("state.json")).expect("a file")).expect("JSON");
    let config = fs::read(original.join("config.json")).expect("a file");
    let mut number = 0;
    let mut forged = |change: &dyn Fn(&mut Value)| {
        let mut state = state.clone();
        change(&mut state);
        number += 1;
        let target = world.path(&format!("forged-{number}"));
        let state = serde_json::to_vec(&state).expect("JSON");
        forge(&original, &target, &[("config.json", config.clone()), ("state.json", state)]);
        try_restore(&target).expect_err("a refusal")
    };
    for (pointer, kind) in [("/serial", "serial"), ("/ged", "ged"), ("/virtio/0", "virtio")] {
        let error = forged(&|state| state.pointer_mut(pointer).expect("a part")["version"] = json!(77));
        assert!(error.contains(kind) && error.contains("77"), "{error}");
    }
    let error = forged(&|state| state["virtio"][0]["data"]["device"]["version"] = json!(77));
    assert!(error.contains("77"), "{error}");
    // Another CPU, more registers than this KVM has, and a register that no KVM has.
    let error = forged(&|state| {
        state["host"] = json!("another");
        // An entry is `struct kvm_cpuid_entry2` in bytes: leaf, subleaf, flags, EAX, EBX, ECX, EDX.
        for entry in state["vcpus"][0]["cpuid"].as_array_mut().expect("a table") {
            let entry = entry.as_array_mut().expect("bytes");
            let zero = |bytes: &[Value]| bytes.iter().all(|byte| *byte == 0);
            if zero(&entry[..8]) {
                entry[16..20].clone_from_slice(&b"Othe".map(Value::from));
            } else if entry[0] == 1 && zero(&entry[1..8]) {
                entry[20..24].fill(json!(0xff));
            }
        }
    });
    assert!(error.contains("a CPU of Othe") && error.contains("smx"), "{error}");
    let error = forged(&|state| {
        let words = state["vcpus"][0]["xsave"].as_array_mut().expect("registers");
        words.resize(words.len() + 4096, json!(0));
    });
    assert!(error.contains("vector registers"), "{error}");
    let error = forged(&|state| {
        state["vcpus"][0]["msrs"].as_array_mut().expect("registers").push(json!([0x1234_5678, 1]));
    });
    assert!(error.contains("0x12345678"), "{error}");
    reformat(&original, 3);
    refused(&world.command(&["restore", &world.text("one")]), &["format 3", "knows 1 to 2"]);
}

#[test]
fn no_changed_byte_and_no_other_length_is_taken() {
    need!(host::kvm());
    let world = saved();
    let path = world.path("one");
    let open = || rvmm::vmm::snapshot::Restore::open(&path).map(drop).map_err(|error| error.to_string());
    let bundle = Bundle::open(&path).expect("a bundle");
    for name in ["bundle.json", "config.json", "state.json", "memory.index"] {
        let whole = fs::read(path.join(name)).expect("a file");
        let file = File::options().write(true).open(path.join(name)).expect("a file");
        // What reads this file first, and every so often a machine that is to be restored.
        let refused = |at: usize, what: &str| {
            let taken = match name {
                "bundle.json" => Bundle::open(&path).is_ok(),
                _ => bundle.read(name).is_ok(),
            };
            assert!(!taken && (!at.is_multiple_of(199) || open().is_err()), "{name}: {what} {at}");
        };
        for (at, byte) in whole.iter().enumerate() {
            file.write_all_at(&[byte ^ 1 << (at % 8)], at as u64).expect("a byte");
            refused(at, "changed at");
            file.write_all_at(&[*byte], at as u64).expect("a byte");
        }
        for length in (0..whole.len()).rev() {
            file.set_len(length as u64).expect("a length");
            refused(length, "cut at");
        }
        file.write_all_at(&[&whole[..], b" "].concat(), 0).expect("a file");
        // White space behind JSON is nothing, but the digests are of every byte.
        assert!(open().is_err() || name == "bundle.json", "{name} with a byte more");
        file.set_len(whole.len() as u64).expect("a length");
    }
    open().expect("the bundle as it was");
}

#[test]
fn layers_without_a_digest_are_named() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", "blk mode=write seed=1 sectors=64 end=hlt").disk(&disk, "").start();
    source.says("OK blk");
    world.create("source", "one", &[]);
    let whole = world.does(&["snapshot", "verify", &world.text("one")]);
    assert!(whole.contains(": whole, "), "{whole}");
    rewrite(&world.path("one"), |manifest| manifest["disks"][0]["digests"][0] = Value::Null);
    let said = world.does(&["snapshot", "verify", &world.text("one")]);
    assert!(said.contains("disk-0-0 could not be") && !said.contains("whole"), "{said}");
    rewrite(&world.path("one"), |manifest| {
        drop(manifest["disks"][0].as_object_mut().expect("a disk").remove("digests"))
    });
    let said = world.does(&["snapshot", "verify", &world.text("one"), "--json"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["without_digest"], json!(["disk-0-0"]));
}
