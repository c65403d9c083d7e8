//! What images say of themselves, in and out.

use serde_json::{Value, json};

use super::*;
use crate::disk::State;
use crate::image::ext4::{Attributes, Kind};

/// The configuration in an archive that was exported.
fn exported(store: &Store, image: &Descriptor) -> (Value, Container) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    store.export_container(image, None, file.as_file_mut(), u64::MAX).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    let mut archive = Archive::new(bytes.as_slice(), u64::MAX);
    let mut document = Value::Null;
    while archive.next().unwrap().is_some() {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut archive, &mut content).unwrap();
        let found: Option<Value> = serde_json::from_slice(&content).ok();
        document = found.filter(|found| found.get("rootfs").is_some()).unwrap_or(document);
    }
    (document, Container::from_layout_archive(store, file.path(), None).unwrap())
}

#[test]
fn versions_and_what_only_containers_know_go_through() {
    let (_directory, store) = store();
    let mut lease = store.lease().unwrap();
    let container = Container::from_archive(&store, docker_archive(&layers()).path(), None).unwrap();
    let first = store.import_container(&mut lease, &container, &options()).unwrap();
    let about = Commit {
        parent: Some(&first),
        message: "second",
        author: "bob",
        created_by: "rvmm commit",
        ..Commit::new(UNIX_EPOCH)
    };
    let image = store.commit(&mut lease, &about, None).unwrap();
    let (document, container) = exported(&store, &image);
    let others = json!({"Volumes": {"/data": {}}, "Healthcheck": {"Test": ["NONE"]}});
    assert_eq!(json!(container.process.other), others, "and nothing of what is empty");
    assert_eq!(document["config"]["Volumes"], others["Volumes"]);
    let history = document["history"].as_array().unwrap();
    let words: Vec<_> = history.iter().map(|entry| &entry["created_by"]).collect();
    assert_eq!(words[..3], [&json!("ADD base"), &json!("ENV A=b"), &json!("RUN")]);
    let second = json!({
        "created": "1970-01-01T00:00:00Z", "author": "bob", "comment": "second", "created_by": "rvmm commit", "empty_layer": true,
    });
    assert_eq!(history[history.len() - 2], second);
    let full = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    assert_eq!(Some(full), document["rootfs"]["diff_ids"].as_array().map(Vec::len));
    assert_eq!((&document["author"], &document["created"]), (&json!("bob"), &second["created"]));
    // Back here, it is the same history with two more entries.
    let back = store.import_container(&mut lease, &container, &options()).unwrap();
    store.tag(&"back".parse().unwrap(), &back).unwrap();
    let inspected = store.inspect("back").unwrap();
    assert_eq!(inspected.config.history.len(), history.len() + 1);
    assert_eq!(inspected.config.config, container.process);
    assert_eq!(inspected.config.history.iter().filter(|version| !version.empty_layer).count(), 1);
}

#[test]
fn places_that_the_init_makes_are_no_changes() {
    let (_directory, store) = store();
    let mut lease = store.lease().unwrap();
    let mut fs = FileSystem::new(SIZE, tempfile::tempfile().unwrap()).unwrap();
    let attributes = |mode| Attributes { mode, uid: 0, gid: 0, mtime: 1, xattrs: BTreeMap::new() };
    let version = |fs: &mut FileSystem, lease: &mut Lease, name: &str, parent: Option<&Descriptor>| {
        let changes = fs.end_layer().unwrap();
        let change = Change { file: fs.raw(), size: SIZE, changes };
        let about = Commit { parent, message: name, ..Commit::new(UNIX_EPOCH) };
        let image = store.commit(lease, &about, Some(&change)).unwrap();
        store.tag(&name.parse().unwrap(), &image).unwrap();
        image
    };
    let told = |a: &str, b: &str| {
        let difference = store.diff(a, b, u64::MAX).unwrap();
        let files = store.diff_files(a, b, &difference.changed, u64::MAX).unwrap().unwrap();
        files.into_iter().map(|file| String::from_utf8(file.path).unwrap()).collect::<Vec<_>>()
    };
    fs.put(b"etc", Kind::Directory, attributes(0o755)).unwrap();
    let first = version(&mut fs, &mut lease, "first", None);
    for path in [&b"run"[..], b"proc", b"sys", b"dev"] {
        fs.put(path, Kind::Directory, attributes(0o755)).unwrap();
    }
    for path in [&b"etc/hosts"[..], b"etc/hostname", b"etc/resolv.conf"] {
        fs.put(path, Kind::File, attributes(0o644)).unwrap();
    }
    let second = version(&mut fs, &mut lease, "second", Some(&first));
    assert_eq!(told("first", "second"), [""; 0]);
    assert_eq!(told("second", "first").len(), 7, "what goes is told");
    // The same in an image that did not come from it.
    let whole = Change { file: fs.raw(), size: SIZE, changes: vec![(0..SIZE, State::Data)] };
    let apart = store.commit(&mut lease, &Commit::new(UNIX_EPOCH), Some(&whole)).unwrap();
    store.tag(&"apart".parse().unwrap(), &apart).unwrap();
    assert_eq!(told("first", "apart").len(), 7);
    assert_eq!(told("second", "apart"), [""; 0]);
    let third = fs.put(b"run/own", Kind::File, attributes(0o644)).unwrap();
    fs.fill(third, 3, &mut &b"own"[..]).unwrap();
    fs.put(b"var", Kind::Directory, attributes(0o755)).unwrap();
    version(&mut fs, &mut lease, "third", Some(&second));
    assert_eq!(
        told("first", "third"),
        ["/run", "/run/own", "/var"],
        "what has something in it was made by somebody"
    );
}
