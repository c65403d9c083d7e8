//! The store as a whole: concurrent commands, garbage, and power that goes away at every step.

use std::path::Path;

use super::fault::Fault;
use super::files::Files;
use super::*;

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
            for entry in store.read_index().unwrap().manifests {
                let manifest = store.manifest(&entry).unwrap();
                manifest.blobs().for_each(|blob| assert!(store.has(&blob.digest)));
            }
            store.gc().unwrap();
            assert_eq!(std::fs::read_dir(store.path().join("uploads")).unwrap().count(), 0);
            assert_eq!(std::fs::read_dir(store.path().join("leases")).unwrap().count(), 0);
            day(&path, Files::default()).unwrap();
            is_whole(&store);
            if done {
                assert!(changes > 60, "only {changes} changes were made");
                break;
            }
        }
    }
}
