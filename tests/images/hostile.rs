//! Warm images that somebody else has made: they decide what the guest is, and nothing on the host.

use std::fs;

use rvmm::image::{MANIFEST, Name, STATE, Store};
use serde_json::{Value, json};

use crate::common::host;
use crate::need;
use crate::world::World;

/// A warm image `bare:warm` of a machine that counts.
fn warm(world: &World) {
    world.bare();
    world.counts("source", &[]);
    world.does(&["commit", "source", "bare:warm", "--warm"]);
    world.does(&["stop", "--force", "source"]);
}

/// The image `bare:warm` with another configuration of its machine, under another name.
fn forge(world: &World, name: &str, change: impl FnOnce(&mut Value)) {
    let store = Store::open(&world.path("store")).expect("a store");
    let mut lease = store.lease().expect("a lease");
    let image = store.resolve("bare:warm").expect("an image");
    let mut manifest = store.manifest(&image).expect("a manifest");
    let state = manifest.layers.iter_mut().find(|layer| layer.media_type == STATE).expect("a state");
    let bytes = store.read_document(state).expect("a state");
    let mut document: Value = serde_json::from_slice(&bytes).expect("JSON");
    change(&mut document["config"]);
    *state = store.put(&mut lease, STATE, document.to_string().as_bytes()).expect("a blob");
    let image = store.put(&mut lease, MANIFEST, &manifest.bytes()).expect("a manifest");
    store.tag(&name.parse::<Name>().expect("a name"), &image).expect("a name");
}

#[test]
fn a_warm_image_names_nothing_on_the_host() {
    need!(host::kvm());
    let world = World::new();
    warm(&world);
    let secret = world.write("secret", vec![7; 1 << 20]);
    let path = world.text("secret");
    // Another disk would be written by the guest.
    forge(&world, "evil:disk", |config| {
        let drives = config["drives"].as_array_mut().expect("drives");
        drives.push(json!({ "path_on_host": path, "format": "raw" }));
    });
    world.refuses(&["run", "evil:disk"], &["disks that are not in the image", "--cold"]);
    forge(&world, "evil:all", |config| {
        config["drives"][0]["path_on_host"] = path.as_str().into();
        config["drives"][0]["base"] = json!([path]);
        config["drives"][0]["layers"] = json!([path]);
        config["entropy"] = json!([{ "source": path }]);
        config["vsock"] = json!([{ "guest_cid": 3, "uds_path": world.text("made") }]);
        config["console"] = json!({ "file": world.text("made") });
        config["boot-source"]["kernel_image_path"] = path.as_str().into();
        config["boot-source"]["initrd_path"] = path.as_str().into();
    });
    let console = format!("file={}", world.text("evil.log"));
    world.does(&["run", "-d", "evil:all", "--name", "evil", "--console", &console]);
    world.has_said("evil", "\ncounter ");
    let config = world.json(&["inspect", "evil"])[0]["config"].to_string();
    assert!(!config.contains(&path) && !config.contains(&world.text("made")), "{config}");
    let pid = world.json(&["ps"])[0]["pid"].as_u64().expect("a process");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    assert!(!open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|file| file == secret));
    assert!(!world.path("made").exists());
    assert!(fs::read(&secret).expect("a file") == [7; 1 << 20]);
}

#[test]
fn a_warm_image_says_nothing_of_the_host_that_made_it() {
    need!(host::kvm());
    let world = World::new();
    warm(&world);
    let store = Store::open(&world.path("store")).expect("a store");
    let manifest = store.manifest(&store.resolve("bare:warm").expect("an image")).expect("a manifest");
    let state = store.read_document(manifest.of_type(STATE).next().expect("a state")).expect("a state");
    assert!(!String::from_utf8_lossy(&state).contains(&world.text("")), "a path of this host");
    // A disk that only this host has is not known to be gone elsewhere.
    world.write("data.raw", vec![1; 1 << 20]);
    world.counts("data", &["--disk", "data.raw"]);
    world.refuses(&["commit", "data", "bare:data", "--warm"], &["data.raw", "without --warm"]);
    world.does(&["commit", "data", "bare:data"]);
    // What a running guest cannot be given is not dropped in silence.
    for option in [["--memory", "512M"], ["--cpus", "2"], ["--disk", "data.raw"], ["--cmdline", "x"]] {
        world.refuses(&[&["run", "bare:warm"], &option[..]].concat(), &["--cold"]);
    }
    world.refuses(&["run", "bare:warm", "-p", "8080:80"], &["-p needs"]);
}
