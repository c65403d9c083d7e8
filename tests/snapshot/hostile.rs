//! Snapshots that somebody else has written, with right digests and wrong values: refused or not, but never a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rvmm::memory::image::{INDEX_FILE, Index, Kind};
use rvmm::snapshot::bundle::{Bundle, Draft, Parent};
use rvmm::vmm::snapshot::Restore;
use rvmm::vmm::{Environment, Vmm};
use serde_json::{Value, json};

use super::counter::{EVERY, address};
use super::world::{World, refused};
use crate::common::host;
use crate::need;

/// xorshift64*: the same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// Pointers to every value that has no values in it, and to every list.
fn places(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, format!("{path}/{key}"), found));
        }
        Value::Array(list) => {
            found.push(path.clone());
            // One of the first few and the last: lists of a thousand words are like their first.
            for (index, value) in
                list.iter().enumerate().filter(|(index, _)| *index < 4 || index + 1 == list.len())
            {
                places(value, format!("{path}/{index}"), found);
            }
        }
        _ => found.push(path),
    }
}

/// Changes one value.
fn mutate(value: &mut Value, random: &mut Random) {
    let bit = 1u64 << random.below(64);
    *value = match (&*value, random.below(8)) {
        (Value::Array(list), 0) => list.iter().skip(1).cloned().collect(),
        (Value::Array(list), 1) => list.iter().chain(list.first()).cloned().collect(),
        (Value::Array(list), 2) => list.iter().cycle().take(list.len() * 70).cloned().collect(),
        (Value::Array(_), _) => json!([]),
        (_, 0) => Value::Null,
        (Value::Bool(value), _) => json!(!value),
        (Value::String(text), 1) => json!(text.repeat(40)),
        (Value::String(_), _) => json!(""),
        (Value::Number(_), 1) => json!(u64::MAX),
        (Value::Number(_), 2) => json!(0),
        (Value::Number(_), 3) => json!(u32::MAX),
        (Value::Number(_), 4) => json!(i64::MIN),
        (Value::Number(number), 5) => json!(number.as_u64().unwrap_or(0).wrapping_add(1)),
        (Value::Number(number), _) => json!(number.as_u64().unwrap_or(0) ^ bit),
        (other, _) => json!([other]),
    };
}

/// A snapshot as `original` with other files, all digests right.
pub fn forge(original: &Path, target: &Path, files: &[(&str, Vec<u8>)]) {
    let bundle = Bundle::open(original).expect("a snapshot");
    let mut draft = Draft::new(target).expect("a place");
    for (name, bytes) in files {
        draft.add(name, bytes).expect("a file");
    }
    if !draft.path().join(INDEX_FILE).exists() {
        draft.add(INDEX_FILE, &bundle.read(INDEX_FILE).expect("an index")).expect("a file");
    }
    for file in fs::read_dir(original).expect("a snapshot").flatten() {
        let to = draft.path().join(file.file_name());
        if file.file_name() != "bundle.json" && !to.exists() {
            fs::hard_link(file.path(), to).expect("a file");
        }
    }
    draft.publish(None, bundle.manifest().disks.clone()).expect("a snapshot");
}

/// Makes a machine of it.
pub fn try_restore(path: &Path) -> Result<(), String> {
    let restore = Restore::open(path).map_err(|error| error.to_string())?;
    let mut config = restore.config().clone();
    config.console = rvmm::console::Config::Off;
    let environment = Environment {
        kernel_cache: None,
        directory: path.parent().map(Path::to_path_buf),
        termination: None,
        log: None,
        grace: Duration::ZERO,
        start_paused: true,
        read_ahead: false,
        on_memory_lost: None,
    };
    Vmm::new(config, Some(&restore), environment).map(drop).map_err(|error| error.to_string())
}

#[test]
fn changed_values_never_make_it_panic() {
    need!(host::kvm());
    let world = World::new();
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", &format!("counter every={EVERY}"));
    let source = source.disk(&disk, "").memory("16M").cpus(2).start();
    address(&source);
    world.create("source", "one", &["--stop"]);
    let original = world.path("one");
    let target = world.path("forged");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(original.join(name)).expect("a file")).expect("JSON")
    };
    let files = ["state.json", "config.json"].map(|name| (name, read(name)));
    let mut random = Random(0x7276_6d6d);
    let mut accepted = 0;
    for round in 0..400 {
        let mut forged = files.clone();
        // Round 0 changes nothing; the configuration has fewer values.
        let (_, value) = &mut forged[usize::from(round % 8 == 7)];
        let mut found = Vec::new();
        places(value, String::new(), &mut found);
        let place = &found[random.below(found.len())];
        if let Some(value) = value.pointer_mut(place).filter(|_| round > 0) {
            mutate(value, &mut random);
        }
        let bytes = forged.map(|(name, value)| (name, serde_json::to_vec(&value).expect("JSON")));
        forge(&original, &target, &bytes);
        let works = try_restore(&target);
        assert!(works.is_ok() || round > 0, "the unchanged one is refused: {works:?}");
        accepted += usize::from(works.is_ok());
        fs::remove_dir_all(&target).expect("a directory");
    }
    eprintln!("{accepted} of 400 changed snapshots could be restored");
}

#[test]
fn one_that_stands_on_itself_is_read_once() {
    let world = World::new();
    let path = world.path("one");
    // An index of some MiB: whoever reads a thousand parents would have it a thousand times.
    let ram = 4 << 30;
    let mut index = Index::new(ram);
    (0..ram / 4096).step_by(4).for_each(|page| index.push(page, Kind::Zero));
    let fill = |draft: &mut Draft| {
        draft.add(INDEX_FILE, &index.to_bytes()).expect("a file");
        fs::File::create(draft.path().join("memory")).and_then(|file| file.set_len(ram)).expect("a file");
    };
    let mut draft = Draft::new(&path).expect("a place");
    fill(&mut draft);
    draft.publish(None, Vec::new()).expect("a snapshot");
    // A bundle that is rewritten keeps its identity, and so can say that it stands on itself.
    let old = Bundle::open(&path).expect("a snapshot");
    let mut draft = Draft::replacing(&old).expect("a place");
    fill(&mut draft);
    let parent = Parent { path: "../one".into(), identity: old.identity().into() };
    draft.replace(Some(parent), &old).expect("a snapshot");
    let rebase = world.command_line(&["snapshot", "rebase", &world.text("one")]);
    refused(&rebase.soft_limit(libc::RLIMIT_AS, 1 << 30).run(), &["one", "is its own"]);
}

/// A snapshot of a machine that reads a disk, and what it says of its state and of its configuration.
fn with_a_disk_to_read(world: &World) -> [Value; 2] {
    let disk = world.raw("disk", 1 << 20);
    let source = world.guest("source", &format!("counter every={EVERY}"));
    let source = source.disk(&disk, ",ro").memory("16M").start();
    address(&source);
    world.create("source", "one", &["--stop"]);
    ["state.json", "config.json"].map(|name| {
        let text = fs::read(world.path("one").join(name)).expect("a file");
        serde_json::from_slice(&text).expect("JSON")
    })
}

/// Forges another snapshot of these.
fn forged(world: &World, [state, config]: &[Value; 2]) -> PathBuf {
    let bytes = |value| serde_json::to_vec(value).expect("JSON");
    let target = world.path("forged");
    forge(&world.path("one"), &target, &[("state.json", bytes(state)), ("config.json", bytes(config))]);
    target
}

#[test]
fn a_disk_that_its_writer_has_never_seen_is_not_given_to_it() {
    need!(host::kvm());
    let world = World::new();
    let [mut state, mut config] = with_a_disk_to_read(&world);
    try_restore(&forged(&world, &[state.clone(), config.clone()])).expect("the disk as it was");
    fs::remove_dir_all(world.path("forged")).expect("a directory");
    config["drives"][0]["path_on_host"] = json!(world.raw("secret", 1 << 20));
    let disks = state["virtio"].as_array_mut().expect("devices").iter_mut();
    let devices = disks.filter_map(|device| device.pointer_mut("/data/device/data")?.as_object_mut());
    assert!(devices.filter_map(|device| device.remove("modified")).count() == 1);
    let error = try_restore(&forged(&world, &[state, config])).expect_err("a refusal");
    assert!(error.contains("--disk vda=PATH"), "{error}");
}

#[test]
fn random_numbers_are_the_hosts_whatever_file_is_named() {
    need!(host::kvm());
    let world = World::new();
    let [state, mut config] = with_a_disk_to_read(&world);
    let secret = world.raw("secret", 4096);
    config["entropy"][0]["source"] = json!(secret);
    forged(&world, &[state, config]);
    let machine = world.restore("forged", "copy");
    world.inspect("copy");
    let open = fs::read_dir(format!("/proc/{}/fd", machine.pid())).expect("descriptors").flatten();
    let files: Vec<_> = open.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    assert!(!files.contains(&secret) && files.contains(&"/dev/urandom".into()), "{files:?}");
}
