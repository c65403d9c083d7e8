//! Versions: what machines have written is kept, told about, and comes back.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::bare::guest;
use crate::common::{eventually, host};
use crate::need;
use crate::world::World;

#[test]
fn a_running_machine_becomes_versions() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 2, &[]);
    let said = world.json(&["commit", "web", "bare:2", "-m", "second", "-a", "bob"]);
    assert!(said["pause_us"].as_u64().is_some_and(|pause| pause > 0), "{said}");
    world.verifies("bare:2", 2);
    // Nothing has changed since.
    let same = world.json(&["commit", "web", "bare:3", "-m", "third"]);
    assert_eq!(world.json(&["diff", "bare:2", "bare:3"])["bytes"], 0);
    assert_ne!(said["digest"], same["digest"]);
    let history = world.json(&["history", "bare:3"]);
    let told = |number: usize| (history[number]["comment"].clone(), history[number]["author"].clone());
    assert_eq!(told(0), ("third".into(), "ada".into()));
    assert_eq!(told(1), ("second".into(), "bob".into()));
    assert_eq!((told(2), history[2]["size"].as_u64() > Some(0)), (("base".into(), "ada".into()), true));
    assert_eq!(history[1]["digest"], said["digest"]);
    assert_eq!((&history[0]["empty_layer"], &history[0]["size"]), (&json!(true), &json!(0)));
    let table = world.does(&["history", "bare:3"]);
    assert!(table.contains("bare:3~2") && table.contains("second"), "{table}");
    // Any version comes back: by its place or its digest.
    world.does(&["checkout", "bare:3~1", "again"]);
    world.verifies("again", 2);
    let digest = said["digest"].as_str().expect("a digest");
    world.verifies(digest, 2);
    let back =
        world.says(&["checkout", "bare:3~2", "--net", "none", "--cmdline", "test=blk rounds=1 seed=1"]);
    assert!(back.status == 0 && back.out.contains("OK blk"), "{back:?}");
    // The machine goes on from where it is, also over an older name.
    world.does(&["stop", "--force", "web"]);
    world.does(&["commit", "web", "bare:1", "-m", "fourth"]);
    assert_eq!(world.json(&["history", "bare:1"]).as_array().map(Vec::len), Some(4));
    world.does(&["verify"]);
}

#[test]
fn a_commit_tells_what_it_made_and_not_what_its_parent_has() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 2, &[]);
    let said = world.json(&["commit", "web", "bare:2"]);
    let same = world.json(&["commit", "web", "bare:3"]);
    let layers = world.json(&["inspect", "bare:2"])[0]["manifest"]["layers"].clone();
    let of = |said: &Value| (said["layer_bytes"].clone(), said["memory_bytes"].clone());
    let last = layers.as_array().and_then(|layers| layers.last()).expect("layers");
    assert_eq!(of(&said), (last["size"].clone(), json!(0)));
    assert_eq!(of(&same), (json!(0), json!(0)));
    let told = world.does(&["commit", "web", "bare:4"]);
    assert!(told.contains("nothing was written to its disk, paused"), "{told}");
    let warm = world.json(&["commit", "web", "bare:4", "--warm"]);
    let layers = world.json(&["inspect", "bare:4"])[0]["manifest"]["layers"].clone();
    let bytes = |layer: &Value| {
        let is_memory =
            layer["mediaType"].as_str().is_some_and(|kind| kind.contains("memory") || kind.contains("state"));
        if is_memory { layer["size"].as_u64() } else { None }
    };
    let memory: u64 = layers.as_array().into_iter().flatten().filter_map(bytes).sum();
    assert!(memory > 0);
    assert_eq!(of(&warm), (json!(0), json!(memory)));
    let told = world.does(&["commit", "web", "bare:4", "--warm"]);
    assert!(
        told.contains("nothing was written to its disk, its memory ") && told.contains("B, paused"),
        "{told}"
    );
    world.does(&["stop", "--force", "web"]);
    let ended = world.json(&["commit", "web", "bare:5"]);
    assert_eq!(of(&ended), (json!(0), json!(0)));
}

#[test]
fn the_same_change_is_the_same_layer() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let mut layers = Vec::new();
    for (name, image) in [("a", "one"), ("b", "two")] {
        world.writes("bare:1", name, 9, &["--rm"]);
        world.does(&["commit", name, image, "-m", name]);
        layers.push(world.json(&["inspect", image])[0]["manifest"]["layers"].clone());
    }
    assert_eq!(layers[0], layers[1], "the same content has the same digest");
    // Ten versions travel as one layer each.
    world.does(&["save", "one", "-o", "one.tar"]);
    world.does(&["load", "-i", "one.tar", "--store", &world.text("other")]);
    world.does(&["verify", "--store", &world.text("other")]);
}

#[test]
fn commits_at_the_same_time() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 3, &[]);
    let commits: Vec<_> = (0..4)
        .map(|number| world.command(&["commit", "web", &format!("v:{number}")]).spawn().expect("rvmm"))
        .collect();
    for mut commit in commits {
        assert!(commit.wait().expect("an end").success());
    }
    for number in 0..4 {
        world.verifies(&format!("v:{number}"), 3);
    }
    // One after the other: a line of versions.
    let lengths =
        (0..4).map(|number| world.json(&["history", &format!("v:{number}")]).as_array().map_or(0, Vec::len));
    let mut lengths: Vec<_> = lengths.collect();
    lengths.sort();
    assert_eq!(lengths, [2, 3, 4, 5]);
}

#[test]
fn a_name_that_several_machines_want() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let mut all = Vec::new();
    for (seed, name) in [(3, "one"), (4, "two"), (5, "three")] {
        world.writes("bare:1", name, seed, &[]);
        let said = world.says(&["commit", name, "db:2", "--json"]);
        assert_eq!(said.status, 0, "{said:?}");
        let digest = serde_json::from_str::<Value>(&said.out).expect("JSON")["digest"].clone();
        let digest = digest.as_str().expect("a digest").to_string();
        match all.last() {
            None => assert_eq!(said.err, ""),
            Some((before, _)) => {
                let before: &String = before;
                let short = &before["sha256:".len()..][..12];
                assert!(said.err.lines().count() == 1 && said.err.contains("db:2"), "{said:?}");
                assert!(said.err.contains(&format!("rvmm tag {short} REPO:TAG")), "{said:?}");
            }
        }
        all.push((digest, seed));
    }
    // Those that lost the name are there, and told.
    assert_eq!(world.json(&["images"]).as_array().map(Vec::len), Some(2));
    let listed = world.json(&["images", "-a"]);
    let nameless: Vec<_> =
        listed.as_array().into_iter().flatten().filter(|image| image["name"].is_null()).collect();
    let mut digests: Vec<_> =
        nameless.iter().map(|image| image["digest"].as_str().expect("a digest")).collect();
    digests.sort();
    let mut wanted: Vec<_> = all[..2].iter().map(|(digest, _)| digest.as_str()).collect();
    wanted.sort();
    assert_eq!(digests, wanted);
    for (digest, seed) in &all {
        let short = &digest["sha256:".len()..][..12];
        let table = world.does(&["images", "-a"]);
        let line = table.lines().find(|line| line.contains(short)).expect("a line");
        assert_eq!(line.starts_with("<none>      <none>  "), *seed != 5, "{table}");
        world.verifies(short, *seed);
    }
    assert_eq!(world.does(&["images", "-aq"]).lines().count(), 4);
    // A machine keeps what it stands on; what nothing keeps is neither there nor told.
    world.does(&["gc"]);
    assert_eq!(world.does(&["images", "-aq"]).lines().count(), 4);
    world.does(&["tag", &all[0].0, "db:first"]);
    world.does(&["tag", &all[0].0, "db:again"]);
    world.does(&["stop", "--all", "--force"]);
    world.does(&["rm", "two"]);
    world.does(&["gc"]);
    let left = world.json(&["images", "-a"]);
    assert!(left.as_array().into_iter().flatten().all(|image| image["name"].is_string()), "{left}");
    // Over its own version, and over an image that has another name, there is nothing to say.
    world.does(&["commit", "three", "db:2"]);
    world.does(&["commit", "three", "db:first"]);
}

#[test]
fn nothing_is_lost_when_a_commit_fails() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 4, &[]);
    // Killed at any time: the next one has it all.
    for pause in [0, 3, 10, 30, 60] {
        let mut commit = world.command(&["commit", "web", "killed"]).spawn().expect("rvmm");
        std::thread::sleep(std::time::Duration::from_millis(pause));
        let _ = commit.kill();
        let _ = commit.wait();
    }
    world.does(&["commit", "web", "whole"]);
    world.verifies("whole", 4);
    world.does(&["gc"]);
    assert_eq!(fs::read_dir(world.path("store/scratch")).expect("scratch").count(), 0);
    // A machine that was killed itself has what its guest had flushed.
    let pid = world.json(&["ps"])[0]["pid"].as_u64().expect("a process").to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill").success());
    assert!(eventually(|| world.json(&["ps"]).as_array().is_some_and(Vec::is_empty)), "it is dead");
    world.does(&["commit", "web", "dead"]);
    world.verifies("dead", 4);
    world.refuses(&["commit", "wbe", "x"], &["wbe", "did you mean `web`?"]);
    world.refuses(&["commit", "web", "X"], &["lowercase"]);
}

#[test]
fn a_full_disk_loses_nothing() {
    need!(host::kvm(), host::program("unshare"));
    let world = World::new();
    let script = "set -e
mount -t tmpfs -o size=12M none small
export RVMM_STORE=$PWD/small/store
rvmm import disk.raw bare:1 --kernel $1 >/dev/null
rvmm run -d bare:1 --name web --net none --console file=web.log --cmdline 'test=blk mode=write seed=4 sectors=64 end=hlt'
while ! grep -q 'OK blk' web.log; do sleep 0.05; done
dd if=/dev/zero of=small/filler bs=4k 2>/dev/null || true
if rvmm commit web full; then echo 'it was not full'; exit 1; fi
rm small/filler
rvmm verify
rvmm commit web good
rvmm stop --force web
rvmm run good --net none --cmdline 'test=blk mode=verify seed=4 sectors=64'";
    world.write("disk.raw", vec![0xa5; 1 << 20]);
    fs::create_dir(world.path("small")).expect("a directory");
    let rvmm = std::path::Path::new(env!("CARGO_BIN_EXE_rvmm")).parent().expect("a directory");
    let path = format!("{}:{}", rvmm.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "sh"]).arg(crate::common::bare::kernel());
    command.env("PATH", path).env("RVMM_RUNTIME_DIR", world.path("run")).current_dir(world.path(""));
    let output = command.output().expect("unshare");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("OK blk"), "{out}{err}");
    let refused: Vec<_> = err.lines().filter(|line| line.starts_with("rvmm: ")).collect();
    assert!(refused.len() == 1 && refused[0].contains("No space left"), "{err}");
}

#[test]
fn machines_without_an_image_are_refused() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let plain =
        guest("hello end=hlt").option("--name", "plain").option("--runtime-dir", world.path("run")).start();
    plain.says("OK hello");
    world.refuses(&["commit", "plain", "x"], &["does not run an image", "rvmm import"]);
    world.refuses(&["commit", "nobody", "x"], &["no machine `nobody`"]);
}

#[test]
fn snapshots_and_clones_of_machines_that_run_images() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 6, &[]);
    world.does(&["snapshot", "create", "web", "snap"]);
    world.does(&["commit", "web", "six"]);
    world.verifies("six", 6);
    // The snapshot stands for itself.
    world.does(&["stop", "--force", "web"]);
    world.does(&["rm", "web"]);
    world.does(&["rmi", "-f", "bare:1", "six"]);
    world.does(&["gc"]);
    let console = format!("file={}", world.text("clone.log"));
    let clone = ["clone", "snap", "-n", "1", "--name", "clone", "--console", &console];
    world.does(&clone);
    assert_eq!(world.json(&["ps"])[0]["state"], "Running");
}

#[test]
fn a_warm_image_goes_on() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.counts("source", &[]);
    let said = world.json(&["commit", "source", "bare:warm", "--warm", "-m", "while it counts"]);
    assert!(said["pause_us"].as_u64().is_some_and(|pause| pause > 0), "{said}");
    world.does(&["stop", "--force", "source"]);
    let images = world.json(&["images", "bare:warm"]);
    assert_eq!(images[0]["warm"], true);
    for (name, options) in [("one", &[][..]), ("two", &["--net", "none"])] {
        let console = format!("file={}", world.text(&format!("{name}.log")));
        let run = ["run", "-d", "bare:warm", "--name", name, "--rm", "--console", &console];
        world.does(&[&run[..], options].concat());
        world.has_said(name, "\ncounter ");
        let log = fs::read_to_string(world.path(&format!("{name}.log"))).expect("a log");
        assert!(!log.contains("counter at"), "it does not boot again: {log}");
        assert!(!log.contains("CORRUPT"), "{log}");
    }
    world.refuses(&["run", "bare:warm", "-e", "A=b"], &["--cold"]);
    // Elsewhere, too: in another store it goes on as it is.
    let other = world.text("other");
    world.does(&["save", "bare:warm", "-o", "warm.tar"]);
    world.does(&["load", "-i", "warm.tar", "--store", &other]);
    // What the commit has kept and what is made of the image say the same.
    let digest = images[0]["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("hex");
    for file in ["memory", "memory.index", "config.json", "state.json"] {
        let read =
            |store: &str| fs::read(world.path(store).join("warm").join(digest).join(file)).expect("a file");
        assert!(read("store") == read("other"), "{file}");
    }
    let console = format!("file={}", world.text("three.log"));
    world.does(&["run", "-d", "bare:warm", "--name", "three", "--console", &console, "--store", &other]);
    world.has_said("three", "\ncounter ");
    let log = fs::read_to_string(world.path("three.log")).expect("a log");
    assert!(!log.contains("counter at") && !log.contains("CORRUPT"), "{log}");
    world.does(&["gc"]);
    world.does(&["verify"]);
    world.does(&["stop", "--all", "--force"]);
    // A version of the disk alone has no memory any more.
    world.does(&["rm", "source"]);
    world.does(&["rmi", "bare:warm"]);
    assert_eq!(fs::read_dir(world.path("store/warm")).expect("bundles").count(), 0);
}

#[test]
fn a_version_without_a_change_is_two_documents() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.run("bare:1", "hello", &["--name", "web"]);
    let blobs = || -> (usize, u64) {
        let blobs = fs::read_dir(world.path("store/blobs/sha256")).expect("blobs");
        let sizes = blobs.map(|blob| blob.and_then(|blob| blob.metadata()).expect("a blob").len());
        sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    };
    let layers = |image: &str| world.json(&["inspect", image])[0]["manifest"]["layers"].clone();
    let before = blobs();
    world.does(&["commit", "web", "bare:2", "-m", "nothing"]);
    let after = blobs();
    assert_eq!(
        (layers("bare:2"), after.0),
        (layers("bare:1"), before.0 + 2),
        "a configuration and a manifest"
    );
    assert!(after.1 - before.1 < 4096, "{} bytes", after.1 - before.1);
    assert_eq!(world.json(&["history", "bare:2"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn commits_of_a_stopped_machine_come_one_after_the_other() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 5, &[]);
    world.does(&["stop", "--force", "web"]);
    let commits: Vec<_> = (0..4)
        .map(|number| world.command(&["commit", "web", &format!("v:{number}")]).spawn().expect("rvmm"))
        .collect();
    for mut commit in commits {
        assert!(commit.wait().expect("an end").success());
    }
    let lengths =
        (0..4).map(|number| world.json(&["history", &format!("v:{number}")]).as_array().map_or(0, Vec::len));
    let mut lengths: Vec<_> = lengths.collect();
    lengths.sort();
    assert_eq!(lengths, [2, 3, 4, 5], "each goes on from the one before");
    world.does(&["start", "web"]);
    world.does(&["stop", "--force", "web"]);
    world.does(&["commit", "web", "last"]);
    world.verifies("last", 5);
}

#[test]
fn a_store_at_a_relative_path() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.write("data.raw", vec![1; 1 << 20]);
    let rvmm = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env("RVMM_STORE", "store");
        let output = command.output().expect("rvmm");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let log = format!("file={}", world.text("web.log"));
    let run = ["run", "-d", "bare:1", "--name", "web", "--net", "none", "--console", &log];
    let test = ["--disk", "data.raw", "--cmdline", "test=blk mode=write seed=6 sectors=64 end=hlt"];
    rvmm(&[&run[..], &test].concat());
    world.has_said("web", "OK blk");
    rvmm(&["commit", "web", "six"]);
    rvmm(&["stop", "--force", "web"]);
    world.verifies("six", 6);
    // From elsewhere, too.
    let mut start = world.command(&["start", "web"]);
    assert!(start.current_dir("/").status().expect("rvmm").success());
}
