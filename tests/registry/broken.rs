//! Connections that break and commands that are killed: what has moved does not move again.

use std::sync::atomic::Ordering::SeqCst;

use crate::common::eventually;
use crate::home::Home;
use crate::need;
use crate::proxy::Proxy;
use crate::server::{self, Registry};

const MIB: u64 = 1 << 20;

#[test]
fn a_pull_over_a_bad_line() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let here = Home::new();
    let image = here.version("disk:1", None, 10, 4 << 20);
    let name = format!("{address}/disk:1");
    here.told(&["push", "disk:1", &name]);
    proxy.taken();
    // Each connection brings some bytes: none is asked for twice.
    proxy.cuts.store(9, SeqCst);
    let there = Home::new();
    there.told(&["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
    let (_, from) = proxy.taken();
    assert!(proxy.cuts.load(SeqCst) <= 0 && from < 5 * MIB, "{from}");
}

#[test]
fn a_pull_that_was_killed() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let here = Home::new();
    let image = here.version("disk:1", None, 11, 12 << 20);
    let name = format!("{address}/disk:1");
    here.told(&["push", "disk:1", &name]);
    proxy.taken();

    proxy.most.store(7 * MIB, SeqCst);
    let there = Home::new();
    let running = there.command(&["pull", &name, "--as", "disk:1"]).start();
    assert!(eventually(|| proxy.holds()), "7 MiB do not come");
    // What came is on the disk when the reader has no more to read.
    let partial = || {
        let files = std::fs::read_dir(there.path("store/uploads")).expect("a store").flatten();
        files.map(|file| file.metadata().map_or(0, |found| found.len())).max()
    };
    assert!(eventually(|| partial() > Some(6 * MIB)), "{:?}", partial());
    running.kill();
    assert_eq!(there.digest("disk:1"), None);
    let (_, before) = proxy.taken();
    proxy.open();
    there.told(&["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
    let (_, after) = proxy.taken();
    assert!(before > 7 * MIB && after < 7 * MIB, "{before} {after}");
}

#[test]
fn a_push_that_was_killed() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let here = Home::new();
    let image = here.version("disk:1", None, 12, 28 << 20);
    let name = format!("{address}/disk:1");
    // Two pieces of 8 MiB arrive.
    proxy.pieces.store(2, SeqCst);
    let running = here.command(&["push", "disk:1", &name]).start();
    assert!(eventually(|| proxy.holds()), "no third piece is sent");
    running.kill();
    let (before, _) = proxy.taken();
    proxy.open();
    here.told(&["push", "disk:1", &name]);
    let (after, _) = proxy.taken();
    assert!(before > 16 * MIB && after < 13 * MIB, "{before} {after}");
    let there = Home::new();
    there.told(&["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
}

#[test]
fn damage_in_what_was_left_is_found() {
    need!(server::offered());
    let registry = Registry::start();
    let here = Home::new();
    let image = here.version("disk:1", None, 13, 1 << 20);
    let name = format!("{}/disk:1", registry.address);
    here.told(&["push", "disk:1", &name]);
    let there = Home::new();
    let manifest = here.store().manifest(&image).expect("a manifest");
    let uploads = there.store().path().join("uploads");
    for layer in &manifest.layers {
        std::fs::write(uploads.join(format!("partial-{}", layer.digest.hex())), [0; 5000]).expect("a file");
    }
    there.told(&["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
}

#[test]
fn a_corrupt_blob_is_not_the_registrys_fault() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let here = Home::new();
    let image = here.version("disk:1", None, 14, 28 << 20);
    let name = format!("{address}/disk:1");
    let layer = here.store().manifest(&image).expect("a manifest").layers[0].digest;
    let path = here.store().blob(&layer);
    let good = std::fs::read(&path).expect("a blob");
    let flip = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).expect("a blob");
    };
    let is_told = || {
        let ended = here.run(&["push", "disk:1", &name]);
        let told = format!("Blob {layer} is corrupt");
        assert!(ended.status == 1 && ended.err.contains(&told), "{ended}");
        assert!(ended.err.contains("rvmm verify --remove") && !ended.err.contains("refuses"), "{ended}");
    };
    // In the first piece, in a later one, in the last one, and the end is missing.
    for at in [0, 10 << 20, good.len() - 1] {
        flip(at);
        is_told();
    }
    std::fs::write(&path, &good[..20 << 20]).expect("a blob");
    is_told();
    // In what a push that was killed has sent already.
    std::fs::write(&path, &good).expect("a blob");
    proxy.pieces.store(2, SeqCst);
    let running = here.command(&["push", "disk:1", &name]).start();
    assert!(eventually(|| proxy.holds()), "no third piece is sent");
    running.kill();
    proxy.open();
    flip(1 << 20);
    is_told();
    // And it goes on with good ones.
    std::fs::write(&path, &good).expect("a blob");
    here.told(&["push", "disk:1", &name]);
    let there = Home::new();
    there.told(&["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
}
