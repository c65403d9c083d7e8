//! The store as a whole: concurrent commands, garbage, and power that goes away at every step.

use std::path::Path;

use super::store::fault::Fault;
use super::store::files::Files;
use super::*;

mod doubt;

/// An image with a few bytes in it.
fn image(
    store: &Store,
    lease: &mut Lease,
    content: &[u8],
    parent: Option<&Descriptor>,
) -> Result<Descriptor, Error> {
    let about = Config { author: "ada".into(), ..Config::default() };
    let config = store.put(lease, CONFIG, &about.bytes())?;
    let kernel = store.put(lease, KERNEL, content)?;
    let manifest = Manifest::new(config, vec![kernel], &about, parent);
    store.put(lease, MANIFEST, &manifest.bytes())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn blob_count(store: &Store) -> usize {
    std::fs::read_dir(store.path().join("blobs/sha256")).unwrap().count()
}

fn is_whole(store: &Store) {
    let wrong = store.verify(|_| {}).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn names_lead_to_images() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("a/store")).unwrap();
    let mut lease = store.lease().unwrap();
    let first = image(&store, &mut lease, b"one", None).unwrap();
    let second = image(&store, &mut lease, b"two", Some(&first)).unwrap();
    store.tag(&name("web:1"), &first).unwrap();
    store.tag(&name("web"), &second).unwrap();
    for text in ["web:1", "web~1", &first.digest.to_string(), &first.digest.hex()[..12]] {
        assert_eq!(store.resolve(text).unwrap().digest, first.digest, "{text}");
    }
    assert_eq!(store.resolve("web").unwrap().digest, second.digest);
    let error = store.resolve("wbe").unwrap_err().to_string();
    assert_eq!(error, "There is no image `wbe`, did you mean `web:latest`?");
    for name in ["w", "abc:1", "x"] {
        let error = store.resolve(name).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
    assert!(store.resolve("web~2").unwrap_err().to_string().contains("only 1 commits"));
    // Tags move, digests do not.
    store.tag(&name("web"), &first).unwrap();
    assert_eq!(store.resolve("web").unwrap().digest, first.digest);
    assert!(store.untag(&name("nothing")).is_err());
    assert!(Store::open(directory.path()).is_err(), "a directory with other things is no store");
}

#[test]
fn gc_keeps_what_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let first = image(&store, &mut lease, b"one", None).unwrap();
    let second = image(&store, &mut lease, b"two", Some(&first)).unwrap();
    store.tag(&name("a"), &second).unwrap();
    let loose = image(&store, &mut lease, b"three", None).unwrap();
    // Held by the lease, though nothing is named.
    let mut upload = store.upload().unwrap();
    upload.append(b"half").unwrap();
    assert_eq!(store.gc().unwrap(), Collected::default());
    drop(lease);
    // A machine that runs the loose image; its lease names the manifest alone.
    let mut machine = store.lease().unwrap();
    assert!(machine.hold(&loose.digest).unwrap());
    assert_eq!(store.gc().unwrap(), Collected::default());
    upload.publish(&mut machine, None).unwrap();
    drop(machine);
    // The loose manifest, its kernel and the upload.
    assert_eq!(store.gc().unwrap().blobs, 3);
    is_whole(&store);
    assert_eq!(store.resolve("a~1").unwrap().digest, first.digest, "the parent stays");
    store.untag(&name("a")).unwrap();
    assert_eq!(store.gc().unwrap().blobs, 5);
    assert_eq!(blob_count(&store), 0);
}

#[test]
fn finds_corruption() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let image = image(&store, &mut lease, b"one", None).unwrap();
    store.tag(&name("a"), &image).unwrap();
    let kernel = Digest::of(b"one");
    std::fs::write(store.blob(&kernel), b"two").unwrap();
    let wrong = store.verify(|_| {}).unwrap();
    assert!(matches!(wrong[..], [Error::Corrupt { digest, .. }] if digest == kernel), "{wrong:?}");
    std::fs::remove_file(store.blob(&kernel)).unwrap();
    assert!(matches!(store.verify(|_| {}).unwrap()[..], [Error::MissingBlob { .. }]));
    assert!(matches!(store.tag(&name("b"), &image), Err(Error::MissingBlob { .. })));
    store.put(&mut lease, KERNEL, b"one").unwrap();
    is_whole(&store);
    std::fs::write(store.blob(&image.digest), b"{").unwrap();
    assert!(matches!(store.manifest(&image), Err(Error::Corrupt { .. })));
}

#[test]
fn commands_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let store = Store::open(directory.path()).unwrap();
            scope.spawn(move || {
                for turn in 0..12 {
                    let mut lease = store.lease().unwrap();
                    let content = format!("{} {}", worker % 2, turn);
                    let image = image(&store, &mut lease, content.as_bytes(), None).unwrap();
                    store.tag(&name(&format!("worker{worker}:{turn}")), &image).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..30 {
                store.gc().unwrap();
            }
        });
    });
    assert_eq!(store.read_index().unwrap().manifests.len(), 48);
    is_whole(&store);
    store.gc().unwrap();
    assert_eq!(blob_count(&store), 1 + 2 * 24);
}

/// A directory that needs no disk where there is such a thing: thousands of syncs.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a user does in a day.
fn day(path: &Path, files: Files) -> Result<(), Error> {
    let store = Store::open_with(path, files)?;
    let mut lease = store.lease()?;
    let first = image(&store, &mut lease, b"one", None)?;
    store.tag(&name("a:1"), &first)?;
    let second = image(&store, &mut lease, b"two", Some(&first))?;
    store.tag(&name("a:2"), &second)?;
    store.tag(&name("a:1"), &second)?;
    drop(lease);
    store.untag(&name("a:2"))?;
    store.gc()?;
    Ok(())
}

#[test]
fn power_goes_away_at_every_change() {
    for undo in [false, true] {
        for changes in 0.. {
            let directory = in_memory();
            let path = directory.path().join("store");
            let fault = Fault::after(changes);
            let result = day(&path, Files::with(fault.clone()));
            let done = !fault.is_over();
            assert!(result.is_ok() || !done, "{changes}: {result:?}");
            fault.lose(undo);
            // The power is back: everything that has a name is whole, and the day can begin again.
            let store = Store::open(&path).unwrap_or_else(|error| panic!("after {changes} changes: {error}"));
            is_whole(&store);
            let kept = store.read_index().unwrap().manifests;
            for entry in &kept {
                let manifest = store.manifest(entry).unwrap();
                manifest.blobs().for_each(|blob| assert!(store.has(&blob.digest)));
            }
            store.gc().unwrap();
            assert_eq!(std::fs::read_dir(store.path().join("uploads")).unwrap().count(), 0);
            assert_eq!(std::fs::read_dir(store.path().join("leases")).unwrap().count(), 0);
            day(&path, Files::default()).unwrap();
            is_whole(&store);
            if done {
                assert_eq!(kept.len(), 1, "what was done stays");
                assert!(changes > 60, "only {changes} changes were made");
                break;
            }
        }
    }
}

/// A disk of 1 MiB in `file`, of which `changes` were written.
fn disk(changes: &[(u64, u8)]) -> (std::fs::File, Vec<(std::ops::Range<u64>, crate::disk::State)>) {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile().unwrap();
    let written = changes.iter().map(|&(block, byte)| {
        file.write_all_at(&[byte; 4096], block * 4096).unwrap();
        (block * 4096..(block + 1) * 4096, crate::disk::State::Data)
    });
    let written = written.collect();
    (file, written)
}

#[test]
fn versions_of_a_disk() {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, UNIX_EPOCH};

    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let mut lease = store.lease().unwrap();
    let kernel = store.put(&mut lease, KERNEL, b"kernel").unwrap();
    let size = 1 << 20;
    let mut last: Option<Descriptor> = None;
    for version in 0..9u64 {
        let (file, changes) =
            disk(&[(version * 3, version as u8 + 1), (100, version as u8), (200 + version % 2, 7)]);
        let about = Commit {
            parent: last.as_ref(),
            message: &format!("version {version}"),
            author: "ada",
            blobs: if version == 0 { std::slice::from_ref(&kernel) } else { &[] },
            ..Commit::new(UNIX_EPOCH + Duration::from_secs(86400 * version))
        };
        let image = store.commit(&mut lease, &about, Some(&Change { file: &file, size, changes })).unwrap();
        store.tag(&name("disk"), &image).unwrap();
        last = Some(image);
    }
    drop(lease);
    store.gc().unwrap();
    is_whole(&store);

    let history = store.history("disk").unwrap();
    assert_eq!(history.len(), 9);
    let (newest, packed) = &history[0];
    assert_eq!((newest.comment.as_str(), newest.created.as_str()), ("version 8", "1970-01-09T00:00:00Z"));
    assert!(*packed > 0 && newest.parent == Some(store.resolve("disk~1").unwrap().digest));

    let unpacked = store.unpack(&store.resolve("disk").unwrap(), u64::MAX).unwrap();
    let paths = std::iter::once(&unpacked.map).chain(&unpacked.layers);
    let files: Vec<_> = paths.map(|path| std::fs::File::open(path).unwrap().into()).collect();
    let layers = crate::disk::Layers::open(&unpacked.map, &files, unpacked.size).unwrap();
    let mut bytes = vec![0; size as usize];
    (0..9).for_each(|version| bytes[version * 3 * 4096..(version * 3 + 1) * 4096].fill(version as u8 + 1));
    bytes[100 * 4096..101 * 4096].fill(8);
    bytes[200 * 4096..202 * 4096].fill(7);
    crate::disk::model::Model::new(&bytes, 1).compare(&mut { layers });

    let difference = store.diff("disk", "disk~1", u64::MAX).unwrap();
    assert_eq!(difference.shared_layers, 8);
    let blocks: Vec<u64> = difference.changed.iter().map(|range| range.start / 4096).collect();
    assert_eq!(blocks, [24, 100, 200]);

    // Another store has the first eight layers already: one layer, a configuration and a manifest come.
    let other = Store::open(&directory.path().join("other")).unwrap();
    let newest = store.resolve("disk").unwrap();
    let manifest = store.manifest(&newest).unwrap();
    let carry = |image: &Descriptor, text: &str| {
        let mut archive = Vec::new();
        store.save(&[(name(text), image.clone())], &mut archive).unwrap();
        other.load(&mut other.lease().unwrap(), &mut archive.as_slice(), 1 << 30).unwrap();
        blob_count(&other)
    };
    let before = carry(&store.resolve("disk~1").unwrap(), "copy:8");
    assert_eq!(carry(&newest, "copy:9"), before + 3);
    is_whole(&other);
    assert_eq!(other.images().unwrap().len(), 2);

    // One file and back; every cut of it is refused and leaves nothing with a name.
    let mut saved = Vec::new();
    store.save(&[(name("disk:9"), newest.clone())], &mut saved).unwrap();
    let third = Store::open(&directory.path().join("third")).unwrap();
    for cut in [0, 100, 1024, saved.len() / 2, saved.len() - 3000] {
        assert!(third.load(&mut third.lease().unwrap(), &mut &saved[..cut], 1 << 30).is_err(), "{cut}");
        assert!(third.images().unwrap().is_empty());
    }
    let loaded = third.load(&mut third.lease().unwrap(), &mut saved.as_slice(), 1 << 30).unwrap();
    assert_eq!(loaded, [(name("disk:9"), newest.clone())]);
    is_whole(&third);
    // Every version is there, with the digest that it had.
    assert_eq!(third.versions("disk:9").unwrap(), store.versions("disk").unwrap());
    assert_eq!(third.gc().unwrap(), Collected::default());
    third.unpack(&third.resolve("disk:9~8").unwrap(), u64::MAX).unwrap();
    let raw = tempfile::NamedTempFile::new().unwrap();
    third.export_raw(&newest, raw.as_file(), u64::MAX).unwrap();
    assert!(std::fs::read(raw.path()).unwrap() == bytes);

    // A damaged layer is not unpacked; a layer that is unpacked is not needed packed.
    let layer = manifest.of_type(DISK_LAYER).last().unwrap().digest;
    std::fs::OpenOptions::new()
        .write(true)
        .open(other.blob(&layer))
        .unwrap()
        .write_all_at(&[1; 9], 3)
        .unwrap();
    assert!(other.unpack(&newest, u64::MAX).is_err());
    store.untag(&name("disk")).unwrap();
    assert!(store.gc().unwrap().cached > 9 * 2);
    assert_eq!(std::fs::read_dir(store.path().join("cache")).unwrap().count(), 0);
}
