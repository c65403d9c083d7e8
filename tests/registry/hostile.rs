//! Registries that nobody should trust, and some that only have a bad day.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rvmm::image::Digest;
use serde_json::json;

use crate::common::noise::noise;
use crate::containers::{Container, layer};
use crate::home::Home;
use crate::script::{Reply, Request, Script};

fn container() -> Container {
    Container::new(vec![layer("a", &noise(50, 300_000))])
}

fn is_layer(request: &Request) -> bool {
    container().blob(request).is_some_and(|bytes| bytes.len() > 100_000)
}

/// A pull that fails in one line with all of `words`, and leaves nothing that is wrong.
#[track_caller]
fn refuses(words: &[&str], answer: impl Fn(&Request, &Container) -> Option<Reply> + Send + Sync + 'static) {
    let container = container();
    let script = Script::start(move |request| {
        answer(request, &container).unwrap_or_else(|| container.answer(request))
    });
    let home = Home::new();
    let ended = home.run(&["pull", &format!("{}/app:1", script.address), "--as", "app", "--size", "64M"]);
    ended.failed(1, words);
    assert!(!ended.err.contains('\x1b'), "{ended}");
    assert_eq!(home.digest("app"), None);
}

#[test]
fn blobs_that_are_not_what_they_should_be() {
    let layer_is = |reply: fn(&[u8]) -> Reply| {
        move |request: &Request, container: &Container| {
            is_layer(request).then(|| reply(container.blob(request).unwrap_or_default()))
        }
    };
    refuses(
        &["sends wrong bytes for blob"],
        layer_is(|bytes| {
            let mut bytes = bytes.to_vec();
            bytes[150_000] ^= 1;
            Reply::new(200, bytes)
        }),
    );
    refuses(&["sends more than the"], layer_is(|_| Reply::endless()));
    refuses(&["sends more than the"], layer_is(|bytes| Reply::new(200, [bytes, b"x"].concat())));
    refuses(&["breaks off blob", "pull again"], layer_is(|bytes| Reply::cut(&bytes[..1000])));
    refuses(&["breaks off blob", "pull again"], layer_is(|bytes| Reply::new(200, &bytes[..1000])));
    refuses(&["has lost blob"], layer_is(|_| Reply::new(404, "")));
    refuses(&["another part of blob"], |request, container| {
        is_layer(request).then(|| {
            let bytes = container.blob(request).unwrap_or_default();
            match request.header("range") {
                None => Reply::cut(&bytes[..1000]),
                Some(_) => Reply::new(206, &bytes[10..]).header("Content-Range", "bytes 10-99/100"),
            }
        })
    });
}

#[test]
fn a_registry_that_gives_a_byte_each_time_is_left() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    refuses(&["breaks off blob", "pull again"], move |request, container| {
        is_layer(request).then(|| {
            count.fetch_add(1, SeqCst);
            let bytes = container.blob(request).unwrap_or_default();
            let at = request
                .header("range")
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let at: usize = at.unwrap_or(0);
            let part = format!("bytes {at}-{}/{}", bytes.len() - 1, bytes.len());
            let status = if at == 0 { 200 } else { 206 };
            Reply::cut(&bytes[at..at + 1]).status(status).header("Content-Range", part)
        })
    });
    assert!(asked.load(SeqCst) < 20);
}

#[test]
fn documents_that_are_not_what_they_should_be() {
    let manifest_is = |bytes: String| {
        move |request: &Request, _: &Container| {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let reply = || Reply::new(200, bytes.clone()).header("Content-Type", kind);
            request.path.contains("/manifests/").then(reply)
        }
    };
    refuses(&["Manifest", "is damaged"], manifest_is("{\"schemaVersion\": 2".into()));
    refuses(&["Manifest", "is damaged"], manifest_is("[".repeat(1 << 20)));
    let mut manifest = container().manifest();
    manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 5000]);
    refuses(&["5000 layers"], manifest_is(manifest.to_string()));
    let mut manifest = container().manifest();
    manifest["layers"][0]["size"] = json!(10);
    refuses(&["sends more than the 10 bytes"], manifest_is(manifest.to_string()));
    let mut manifest = container().manifest();
    manifest["layers"][0]["size"] = json!(u64::MAX);
    refuses(&["breaks off blob"], manifest_is(manifest.to_string()));
    let mut manifest = container().manifest();
    manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd");
    refuses(&["is damaged", "not a digest"], manifest_is(manifest.to_string()));

    let all = |reply: fn() -> Reply| move |_: &Request, _: &Container| Some(reply());
    refuses(&["is larger than"], all(Reply::endless));
    refuses(
        &["its type is `text/html`"],
        all(|| Reply::new(200, "<html>").header("Content-Type", "text/html")),
    );
    refuses(&["Cannot talk to registry"], all(|| Reply::new(200, "").header("X-Flood", "x".repeat(4 << 20))));
    refuses(&["Cannot talk to registry"], all(Reply::nothing));
    refuses(
        &["refuses to give manifest", "DENIED go away[2J"],
        all(|| Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"go away\u001b[2J\n"}]}"#)),
    );
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": Digest::of(b"").to_string(),
        "size": 1, "platform": {"architecture": "s390x", "os": "linux"}}]});
    let index = index.to_string();
    refuses(&["no image for linux on amd64"], move |_, _| {
        Some(Reply::new(200, index.clone()).header("Content-Type", "application/vnd.oci.image.index.v1+json"))
    });
}

#[test]
fn places_where_nobody_should_be_sent() {
    for (location, words) in [
        ("/v2/app/manifests/1", "without end"),
        ("http://203.0.113.1/manifest", "sends us on to `http://203.0.113.1`, which is not safe"),
        ("http://localhost@203.0.113.1/", "not safe"),
        ("file:///etc/passwd", "not safe"),
        ("gopher://localhost/", "not safe"),
    ] {
        refuses(&[words], move |_, _| Some(Reply::redirect(location)));
    }
    refuses(&["unknown kind"], |_, _| Some(Reply::new(401, "")));
    refuses(&["unknown kind"], |_, _| Some(Reply::new(401, "").header("WWW-Authenticate", "Negotiate")));
}

#[test]
fn a_digest_that_is_asked_for_must_come() {
    let container = container();
    let script = Script::start(move |request| match request.path.contains("/manifests/") {
        true => container.answer(&Request { path: "/v2/app/manifests/1".into(), ..request.clone() }),
        false => container.answer(request),
    });
    let home = Home::new();
    let name = format!("{}/app@{}", script.address, Digest::of(b"another"));
    home.run(&["pull", &name, "--as", "app"]).failed(1, &["sends wrong bytes for manifest"]);
    home.run(&["pull", &name]).failed(125, &["--as REPO:TAG"]);
}

#[test]
fn a_bad_day_passes() {
    let container = container();
    let count = AtomicUsize::new(0);
    let script = Script::start(move |request| match count.fetch_add(1, SeqCst) {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").header("Retry-After", 0),
        3 => Reply::nothing(),
        5 => Reply::new(500, "oh"),
        _ => container.answer(request),
    });
    let home = Home::new();
    home.told(&["pull", &format!("{}/app:1", script.address), "--as", "app", "--size", "64M"]);
    assert!(home.digest("app").is_some());
    let bad = Script::start(|_| Reply::new(502, "").header("Retry-After", 0));
    let name = format!("{}/app:1", bad.address);
    home.run(&["pull", &name]).failed(1, &["Cannot talk to registry", "502"]);
    assert_eq!(bad.asked().len(), 4, "it is tried again, and not for ever");
}

/// What an upload has left in a registry that goes on from any byte, as the specification has it.
#[test]
fn an_upload_goes_on_from_the_byte_where_it_broke() {
    let home = Home::new();
    let image = home.version("disk:1", None, 51, 20 << 20);
    let layer = home.store().manifest(&image).expect("a manifest").layers[0].clone();
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let have = Arc::clone(&got);
    // Of the second piece only the first 3,000,000 bytes are read.
    let limit = |request: &Request| {
        let second = request.header("content-range").is_some_and(|range| range.starts_with("8388608-"));
        (request.method == "PATCH" && second).then_some(3_000_000)
    };
    let script = Script::reading(limit, move |request| {
        let mut have = have.lock().expect("no panic");
        let stand = |have: &[u8], status| {
            let range = format!("0-{}", have.len().saturating_sub(1));
            Reply::new(status, "").header("Location", "/session?of=one").header("Range", range)
        };
        let layer_is_whole = request.path.contains(&format!("digest={}", layer.digest));
        match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("Location", "/session?of=one"),
            "GET" if request.path == "/session?of=one" => stand(&have, 204),
            "PATCH" => {
                let start =
                    request.header("content-range").and_then(|range| range.split('-').next()?.parse().ok());
                if start != Some(have.len()) {
                    return Reply::new(416, "");
                }
                have.extend(&request.body);
                match request.body.len() {
                    3_000_000 => Reply::nothing(),
                    _ => stand(&have, 202),
                }
            }
            "PUT" if layer_is_whole => {
                have.extend(&request.body);
                let same = Digest::of(&have) == layer.digest;
                Reply::new(if same { 201 } else { 400 }, "")
            }
            _ => Reply::new(201, ""),
        }
    });
    let told = home.told(&["push", "disk:1", &format!("{}/disk:1", script.address)]);
    assert_eq!(told["blobs"], 2);
    let pieces: Vec<String> = script
        .asked()
        .iter()
        .filter(|request| request.method == "PATCH")
        .filter_map(|request| request.header("content-range").map(String::from))
        .collect();
    assert_eq!(pieces[0], "0-8388607");
    assert_eq!(pieces[1], "8388608-16777215");
    assert_eq!(pieces[2], "11388608-19777215", "it goes on from where the registry says");
}

#[test]
fn a_registry_that_takes_no_pieces_gets_the_whole() {
    let home = Home::new();
    home.version("disk:1", None, 52, 9 << 20);
    let script = Script::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").header("Location", "session"),
        "PATCH" => Reply::new(405, ""),
        _ => Reply::new(201, ""),
    });
    home.told(&["push", "disk:1", &format!("{}/a/disk:1", script.address)]);
    let sizes: Vec<usize> = script
        .asked()
        .iter()
        .filter(|request| request.method == "PUT")
        .map(|request| request.body.len())
        .collect();
    assert!(sizes.iter().any(|&size| size > 9 << 20), "{sizes:?}");
    assert!(
        script
            .asked()
            .iter()
            .any(|request| request.path.starts_with("/v2/a/disk/blobs/uploads/session?digest="))
    );
}

#[test]
fn an_upload_may_go_elsewhere_but_the_password_may_not() {
    let home = Home::new();
    home.version("disk:1", None, 53, 1 << 20);
    let elsewhere = Script::start(|_| Reply::new(201, ""));
    let place = format!("http://{}/upload", elsewhere.address);
    let script = Script::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x");
        }
        match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("Location", &place),
            _ => Reply::new(201, ""),
        }
    });
    std::fs::create_dir(home.path("docker")).expect("room");
    let text = format!(r#"{{"auths": {{"{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#, script.address);
    std::fs::write(home.path("docker/config.json"), text).expect("room");
    home.told(&["push", "disk:1", &format!("{}/disk:1", script.address)]);
    let sent = elsewhere.asked();
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|request| request.header("authorization").is_none()), "{sent:?}");
}
