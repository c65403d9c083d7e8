//! What travels, counted on the wire.

use crate::common::host;
use crate::home::Home;
use crate::need;
use crate::proxy::Proxy;
use crate::server::{self, Registry};

const MIB: u64 = 1 << 20;

/// Heads of requests and answers, manifests and configurations.
const TALK: u64 = 24 << 10;

#[test]
fn only_what_is_missing_travels() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let name = |tag: &str| format!("{address}/team/disk:{tag}");
    let here = Home::new();
    let first = here.version("disk:1", None, 1, 12 * MIB as usize);
    let second = here.version("disk:2", Some(&first), 2, 100 << 10);

    let told = here.told(&["push", "disk:1", &name("1")]);
    assert_eq!(told["blobs"], 2);
    let size = told["bytes"].as_u64().expect("a number");
    let (to, from) = proxy.taken();
    assert!((size..size + TALK).contains(&to) && from < TALK, "{size}: {to} {from}");
    assert!((12 * MIB..13 * MIB).contains(&size), "{size}");
    assert!(registry.requests("PATCH") > 0, "a large layer goes in pieces");

    // The second version: its own layer and its configuration.
    let told = here.told(&["push", "disk:2", &name("2")]);
    assert_eq!(told["blobs"], 2);
    let small = told["bytes"].as_u64().expect("a number");
    let (to, from) = proxy.taken();
    assert!((small..small + TALK).contains(&to) && from < TALK && small < MIB / 4, "{small}: {to} {from}");
    // Again: nothing.
    assert_eq!(here.told(&["push", "disk:2", &name("again")])["bytes"], 0);
    assert!(proxy.taken().0 < TALK);

    let there = Home::new();
    there.told(&["pull", &name("1")]);
    assert_eq!(there.digest(&name("1")), Some(first.digest));
    let (to, from) = proxy.taken();
    assert!((size..size + TALK).contains(&from) && to < TALK, "{size}: {to} {from}");
    let told = there.told(&["pull", &name("2"), "--as", "mine:2"]);
    assert_eq!(told["blobs"], 2);
    assert!(told["known_bytes"].as_u64() > Some(12 * MIB));
    assert_eq!(there.digest("mine:2"), Some(second.digest));
    let (to, from) = proxy.taken();
    assert!((small..small + TALK).contains(&from) && to < TALK, "{small}: {to} {from}");
    // What is whole is not fetched again, whatever it is called.
    assert_eq!(there.told(&["pull", &name("again")])["bytes"], 0);
    assert!(proxy.taken().1 < TALK);
    let pinned = format!("{address}/team/disk@{}", first.digest);
    assert_eq!(there.told(&["pull", &pinned, "--as", "pinned:1"])["digest"], first.digest.to_string());
    assert!(proxy.taken().1 < TALK);
}

#[test]
fn another_repository_lends_its_layers() {
    need!(server::offered());
    let registry = Registry::start();
    let (proxy, address) = Proxy::start(&registry.address);
    let here = Home::new();
    let image = here.version(&format!("{address}/a/base:1"), None, 3, 3 << 20);
    here.told(&["push", &format!("{address}/a/base:1")]);
    proxy.taken();
    let told = here.told(&["push", &format!("{address}/a/base:1"), &format!("{address}/b/copy:1")]);
    let (to, _) = proxy.taken();
    assert!(told["bytes"] == 0 && to < TALK, "{told} {to}");
    let there = Home::new();
    there.told(&["pull", &format!("{address}/b/copy:1"), "--as", "copy"]);
    assert_eq!(there.digest("copy"), Some(image.digest));
}

#[test]
fn four_go_at_once_and_all_come() {
    need!(server::offered());
    let registry = Registry::start();
    let here = Home::new();
    let mut image = None;
    for version in 0..12 {
        image = Some(here.version("many:1", image.as_ref(), 100 + version, 200 << 10));
    }
    let name = format!("{}/many:1", registry.address);
    assert_eq!(here.told(&["push", "many:1", &name])["blobs"], 13);
    let there = Home::new();
    assert_eq!(there.told(&["pull", &name])["blobs"], 13);
    assert_eq!(there.digest(&name), image.map(|image| image.digest));
    assert!(there.run(&["pull", &name]).out.contains("nothing had to be fetched"));
}

#[test]
fn tls_is_spoken_to_those_whom_we_trust() {
    need!(server::offered(), host::program("openssl").map(drop));
    let registry = Registry::with_tls();
    let here = Home::new();
    let image = here.version("disk:1", None, 4, 1 << 20);
    let name = format!("{}/disk:1", registry.address);
    let refused = here.run(&["push", "disk:1", &name]);
    refused.failed(1, &["Cannot talk to registry", "certificate"]);
    let trusting = |home: &Home, arguments: &[&str]| {
        let ended = home.command(arguments).env("SSL_CERT_FILE", registry.certificate()).run();
        assert_eq!(ended.status, 0, "{ended}");
    };
    trusting(&here, &["push", "disk:1", &name]);
    let there = Home::new();
    trusting(&there, &["pull", &name, "--as", "disk:1"]);
    assert_eq!(there.digest("disk:1"), Some(image.digest));
}
