//! What images say of themselves, in and out.

use serde_json::{Value, json};

use super::*;

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
