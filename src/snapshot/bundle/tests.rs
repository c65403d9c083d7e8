use super::*;

fn sample(root: &Path) -> PathBuf {
    let target = root.join("one");
    let mut draft = Draft::new(&target).unwrap();
    draft.add("state.json", b"{\"a\":1}").unwrap();
    let disks = vec![Disk { id: "vda".into(), layers: vec!["disk-vda-0".into()], base: 1 }];
    draft.publish(None, disks).unwrap();
    target
}

#[test]
fn reads_what_it_wrote() {
    let root = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&sample(root.path())).unwrap();
    assert_eq!(bundle.read("state.json").unwrap(), b"{\"a\":1}");
    assert_eq!(bundle.disk("vda").unwrap(), (vec![root.path().join("one/disk-vda-0")], vec![]));
    assert_eq!(bundle.memory().unwrap(), [root.path().join("one")]);
    assert!(matches!(Draft::new(bundle.path()), Err(Error::Exists { .. })));
}

#[test]
fn relative_paths_lead_there() {
    let check = |from: &str, to: &str, way: &str| {
        assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(way));
    };
    check("/a/b", "/a/c", "../c");
    check("/a", "/a/b/c", "b/c");
    check("/a/b/c", "/d", "../../../d");
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::new(&root.path().join("one")).unwrap();
    draft.add("state.json", b"x").unwrap();
    drop(draft);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn what_killed_ones_have_left_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("one");
    let stale = root.path().join(".one.partial-1-0");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("memory"), "x").unwrap();
    let (first, second) = (Draft::new(&target).unwrap(), Draft::new(&target).unwrap());
    assert!(!stale.exists() && first.path().exists() && second.path().exists());
    first.publish(None, Vec::new()).unwrap();
    assert!(matches!(second.publish(None, Vec::new()), Err(Error::Exists { .. })));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn every_changed_byte_and_every_length_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let target = sample(root.path());
    for name in [MANIFEST, "state.json"] {
        let path = target.join(name);
        let bytes = fs::read(&path).unwrap();
        let refused = |changed: &[u8]| {
            fs::write(&path, changed).unwrap();
            Bundle::open(&target).and_then(|bundle| bundle.read("state.json")).is_err()
        };
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(refused(&changed), "{name} byte {at}");
            assert!(refused(&bytes[..at]), "{name} length {at}");
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn a_bundle_that_is_its_own_parent_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("one");
    Draft::new(&target).unwrap().publish(Some("../one".into()), Vec::new()).unwrap();
    assert!(matches!(Bundle::open(&target).unwrap().memory(), Err(Error::Depth { .. })));
}
