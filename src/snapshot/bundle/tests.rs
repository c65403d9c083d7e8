use super::*;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, lchown};

use crate::testing::skip;

/// A draft with 2 MiB of memory, all of them zero.
fn draft(target: &Path) -> Draft {
    let mut draft = Draft::new(target).unwrap();
    draft.add(INDEX_FILE, &image::Index::new(2 << 20).to_bytes()).unwrap();
    File::create(draft.path().join(image::PAGES_FILE)).unwrap().set_len(2 << 20).unwrap();
    draft
}

fn sample(root: &Path) -> PathBuf {
    let target = root.join("one");
    let mut draft = draft(&target);
    draft.add("state.json", b"{\"a\":1}").unwrap();
    let disks = vec![Disk { id: "vda".into(), layers: vec!["disk-vda-0".into()], base: 1, digests: vec![] }];
    draft.publish(None, disks).unwrap();
    target
}

#[test]
fn reads_what_it_wrote() {
    let root = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&sample(root.path())).unwrap();
    assert_eq!(bundle.read("state.json").unwrap(), b"{\"a\":1}");
    let files = DiskFiles { base: vec![root.path().join("one/disk-vda-0")], overlays: vec![] };
    assert_eq!((bundle.disk("vda"), bundle.disk("vdb")), (Some(files), None));
    assert!(bundle.memory(&[], true).unwrap().directories().eq([root.path().join("one")]));
    assert!(matches!(Draft::new(bundle.path()), Err(Error::Exists { .. })));
}

#[test]
fn one_that_is_rewritten_before_its_manifest_is_read_is_told_from_none() {
    let root = tempfile::tempdir().unwrap();
    let path = sample(root.path());
    let opened = Directory::open(&path).unwrap();
    let away = root.path().join("away");
    fs::rename(&path, &away).unwrap();
    sample(root.path());
    fs::remove_dir_all(&away).unwrap();
    assert!(matches!(Bundle::of(opened, &path), Err(Error::Replaced { .. })));
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

/// A bundle on the one at `base`.
fn on(base: &Path, target: &Path) -> Bundle {
    let base = Bundle::open(base).unwrap();
    draft(target).publish(Some(base.as_parent_of(target)), Vec::new()).unwrap();
    Bundle::open(target).unwrap()
}

#[test]
fn a_bundle_that_is_its_own_parent_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let target = sample(root.path());
    let old = Bundle::open(&target).unwrap();
    let mut draft = Draft::replacing(&old).unwrap();
    fs::copy(target.join(image::PAGES_FILE), draft.path().join(image::PAGES_FILE)).unwrap();
    draft.add(INDEX_FILE, &old.read(INDEX_FILE).unwrap()).unwrap();
    draft.replace(Some(Parent { path: "../one".into(), identity: old.identity().into() }), &old).unwrap();
    assert!(matches!(Bundle::open(&target).unwrap().memory(&[], true), Err(Error::Depth { .. })));
}

#[test]
fn what_root_rewrites_stays_its_users() {
    let root = tempfile::tempdir().unwrap();
    let target = sample(root.path());
    let all = || {
        let files = fs::read_dir(&target).unwrap().map(|file| file.unwrap().path());
        files.chain([target.clone()]).collect::<Vec<_>>()
    };
    if all().iter().any(|path| lchown(path, Some(65_534), Some(65_534)).is_err()) {
        return skip("only root gives files away");
    }
    let old = Bundle::open(&target).unwrap();
    let mut draft = Draft::replacing(&old).unwrap();
    draft.add(INDEX_FILE, &old.read(INDEX_FILE).unwrap()).unwrap();
    draft.replace(None, &old).unwrap();
    assert_ne!(Bundle::open(&target).unwrap().manifest(), old.manifest());
    for path in all() {
        let found = path.metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (65_534, 65_534), "{}", path.display());
    }
}

#[test]
fn a_bundle_stands_only_on_what_it_was_made_on() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (sample(root.path()), root.path().join("two"));
    let upper = on(&one, &two);
    assert_eq!(upper.memory(&[], true).unwrap().depth(), 2);
    // Another one in its place, which says the same of its memory.
    let moved = root.path().join("moved");
    fs::rename(&one, &moved).unwrap();
    sample(root.path());
    draft(&root.path().join("three")).publish(None, Vec::new()).unwrap();
    fs::remove_dir_all(&one).unwrap();
    fs::rename(root.path().join("three"), &one).unwrap();
    let error = upper.memory(&[], true).err().unwrap();
    assert!(matches!(&error, Error::Parent { path, parent } if *path == two && *parent == one), "{error}");
    // Wherever the right one is, it is known.
    let moved = Bundle::open(&moved).unwrap();
    let other = Bundle::open(&one).unwrap();
    assert_eq!(upper.memory(&[other.clone(), moved.clone()], true).unwrap().depth(), 2);
    assert!(upper.memory(&[other], true).is_err());
    // Rewritten, it is still the same to those that stand on it.
    let mut again = Draft::replacing(&moved).unwrap();
    again.add(INDEX_FILE, &image::Index::new(2 << 20).to_bytes()).unwrap();
    again.replace(None, &moved).unwrap();
    assert_eq!(Bundle::open(moved.path()).unwrap().identity(), moved.identity());
}

#[test]
fn what_names_no_identity_stands_only_on_what_had_none() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (sample(root.path()), root.path().join("two"));
    on(&one, &two);
    let first = |path: &Path| {
        let mut manifest = Bundle::open(path).unwrap().manifest;
        (manifest.format, manifest.parent_identity) = (1, None);
        let text = serde_json::to_string(&manifest).unwrap();
        let digest = blake3::hash(text.as_bytes()).to_hex();
        fs::write(path.join(MANIFEST), format!(r#"{{"digest":"{digest}","bundle":{text}}}"#)).unwrap();
    };
    // Else somebody's bundle of format 1 would have the memory of any other that is here.
    first(&two);
    assert!(matches!(Bundle::open(&two).unwrap().memory(&[], true), Err(Error::Parent { .. })));
    first(&one);
    assert_eq!(Bundle::open(&two).unwrap().memory(&[], true).unwrap().depth(), 2);
}

#[test]
fn memory_is_the_bundles_own() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (sample(root.path()), root.path().join("two"));
    let mut other = Draft::new(&two).unwrap();
    let mut index = image::Index::new(2 << 20);
    index.push(1, image::Kind::Zero);
    other.add(INDEX_FILE, &index.to_bytes()).unwrap();
    other.publish(None, Vec::new()).unwrap();
    fs::copy(two.join(INDEX_FILE), one.join(INDEX_FILE)).unwrap();
    let error = Bundle::open(&one).unwrap().memory(&[], true).err().unwrap();
    assert!(matches!(&error, Error::Damaged { path, .. } if path.ends_with(INDEX_FILE)), "{error}");
}

#[test]
fn what_is_read_belongs_together() {
    let root = tempfile::tempdir().unwrap();
    let one = sample(root.path());
    let bundle = Bundle::open(&one).unwrap();
    let mut index = image::Index::new(2 << 20);
    index.push(1, image::Kind::Zero);
    let mut again = Draft::replacing(&bundle).unwrap();
    again.add(INDEX_FILE, &index.to_bytes()).unwrap();
    File::create(again.path().join(image::PAGES_FILE)).unwrap().set_len(2 << 20).unwrap();
    // It is rewritten before its memory was opened: what is there now is not taken for what was there.
    again.replace(None, &bundle).unwrap();
    assert!(bundle.memory(&[], true).is_err());
    assert_eq!(Bundle::open(&one).unwrap().memory(&[], true).unwrap().depth(), 1);
}
