//! Blobs whose bytes have changed on the host's disk: what reads them says which, and nothing is made of them.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use crate::world::World;

/// The blob of the disk layer of an image, and what is told of it when it is corrupt.
fn layer(world: &World, image: &str) -> (PathBuf, String) {
    let layers = world.json(&["inspect", image])[0]["manifest"]["layers"].clone();
    let digest = layers[0]["digest"].as_str().expect("a digest").to_string();
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    (world.path("store/blobs/sha256").join(hex), format!("Blob {digest} is corrupt"))
}

#[test]
fn a_corrupt_layer_is_named_wherever_it_is_read() {
    let world = World::new();
    world.image("web:1");
    fs::write(world.path("root/etc/hosts"), "10.0.0.1 other").expect("a file");
    world.image("web:2");
    let (path, told) = layer(&world, "web:1");
    let good = fs::read(&path).expect("a blob");
    // In its header, tables, data and at its end, where nothing of the disk is.
    for at in [8, (1 << 12) + 5, good.len() / 2, good.len() - 5] {
        let mut bad = good.clone();
        bad[at] ^= 0x11;
        fs::write(&path, &bad).expect("a blob");
        fs::remove_dir_all(world.path("store/cache")).expect("a cache");
        fs::create_dir(world.path("store/cache")).expect("a cache");
        let words = [told.as_str(), "rvmm verify --remove", "pull or load"];
        world.write("out", "before");
        world.refuses(&["save", "web:2", "web:1", "-o", "out"], &words);
        assert_eq!(fs::read(world.path("out")).expect("a file"), b"before");
        assert_eq!(fs::read_dir(world.path("")).expect("files").count(), 3, "root, store and out");
        let output = world.command(&["save", "web:1"]).stdout(Stdio::piped()).output().expect("rvmm");
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(&told));
        if at == good.len() - 5 {
            continue;
        }
        world.refuses(&["export", "web:1", "--format", "raw", "out"], &words);
        world.refuses(&["export", "web:1", "--format", "oci", "out"], &words);
        world.refuses(&["diff", "web:1", "web:2"], &words);
    }
    // Cut off.
    fs::write(&path, &good[..good.len() / 2]).expect("a blob");
    world.refuses(&["save", "web:1", "-o", "out"], &[&told]);
    fs::write(&path, &good).expect("a blob");
    world.does(&["save", "web:1", "-o", "out"]);
    world.does(&["load", "-i", "out", "--store", &world.text("other")]);
    world.does(&["verify", "--store", &world.text("other")]);
}
