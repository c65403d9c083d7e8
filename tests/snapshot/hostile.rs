//! Snapshots that somebody else has written, with right digests and wrong values: refused or not, but never a panic.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rvmm::memory::image::INDEX_FILE;
use rvmm::snapshot::bundle::{Bundle, Draft};
use rvmm::vmm::snapshot::Restore;
use rvmm::vmm::{Environment, Vmm};
use serde_json::{Value, json};

use super::counter::{EVERY, address};
use super::world::World;
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
        paused: true,
        ahead: false,
        lost: None,
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
