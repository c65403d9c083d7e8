//! What must not be lost when something is damaged, cannot be read, is killed or comes twice at a time.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;

use super::*;

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// gc refuses, with a line that has `word` in it, and everything is still there.
#[track_caller]
fn removes_nothing(store: &Store, word: &str) {
    let before = blob_count(store);
    for collected in [store.gc(), store.gc_unused_cache()] {
        if let Err(error) = collected {
            let said = crate::sys::chain(&error);
            assert!(said.starts_with("Nothing was removed") && said.contains(word), "{said}");
            assert_eq!(blob_count(store), before);
            return;
        }
    }
    panic!("gc was sure");
}

#[test]
fn gc_removes_nothing_when_it_cannot_tell() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let first = image(&store, &mut lease, b"one", None).unwrap();
    let second = image(&store, &mut lease, b"two", Some(&first)).unwrap();
    let config = store.manifest(&second).unwrap().config;
    drop(lease);
    store.tag(&name("a"), &second).unwrap();
    // The image itself, the one that it came from, and what says which unpacked layers are its own.
    for digest in [second.digest, first.digest, config.digest] {
        let whole = fs::read(store.blob(&digest)).unwrap();
        flip(&store.blob(&digest));
        removes_nothing(&store, &digest.hex());
        fs::write(store.blob(&digest), whole).unwrap();
    }
    let whole = fs::read(store.blob(&second.digest)).unwrap();
    fs::remove_file(store.blob(&second.digest)).unwrap();
    removes_nothing(&store, &second.digest.hex());
    // A name that is taken away settles it.
    fs::write(store.blob(&second.digest), &whole).unwrap();
    flip(&store.blob(&second.digest));
    store.untag(&name("a")).unwrap();
    assert_eq!(store.gc().unwrap().blobs, 5);
}

#[test]
fn gc_removes_nothing_when_a_lease_or_a_machine_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let loose = image(&store, &mut lease, b"one", None).unwrap();
    // A running machine's image without a name, with its first byte damaged.
    let whole = fs::read(store.blob(&loose.digest)).unwrap();
    fs::write(store.blob(&loose.digest), [b"[", &whole[1..]].concat()).unwrap();
    removes_nothing(&store, &loose.digest.hex());
    fs::write(store.blob(&loose.digest), whole).unwrap();
    let path = fs::read_dir(store.path().join("leases")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read(&path).unwrap();
    fs::write(&path, [0xff, 0xfe]).unwrap();
    removes_nothing(&store, "leases");
    // Half a line, of a disk that was full, hides none of the others.
    fs::write(&path, [b"sha256:0123", &text[..]].concat()).unwrap();
    assert_eq!(store.gc().unwrap(), Collected::default());
    let lock = store.lock_instance("web").unwrap();
    store.create_instance(&lock, record(&loose)).unwrap();
    drop(lease);
    assert_eq!(store.gc().unwrap(), Collected::default());
    flip_record(&store);
    removes_nothing(&store, "web");
}

fn flip_record(store: &Store) {
    fs::write(store.path().join("instances/web/instance.json"), b"{").unwrap();
}

fn record(image: &Descriptor) -> Record {
    Record {
        image: image.clone(),
        first: 1,
        kernel: None,
        created: String::new(),
        machine: serde_json::json!({}),
    }
}

#[test]
fn one_command_makes_a_machine_of_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = image(&store, &mut store.lease().unwrap(), b"one", None).unwrap();
    store.tag(&name("a"), &image).unwrap();
    let make = |number: u32| {
        let lock = store.lock_instance("web").unwrap();
        store.create_instance(&lock, Record { first: number, ..record(&image) }).is_ok()
    };
    let made = thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|number| scope.spawn(move || make(number))).collect();
        let gc = scope.spawn(|| (0..20).for_each(|_| assert_eq!(store.gc().unwrap().blobs, 0)));
        let made: Vec<bool> = all.into_iter().map(|one| one.join().unwrap()).collect();
        gc.join().unwrap();
        made
    });
    let winner = made.iter().position(|made| *made).unwrap();
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    assert_eq!(store.instance("web").unwrap().unwrap().record.first, winner as u32);
}

#[test]
fn a_machine_that_is_being_removed_is_there_or_gone() {
    for undo in [false, true] {
        for changes in 0.. {
            let directory = in_memory();
            let path = directory.path().join("store");
            let store = Store::open(&path).unwrap();
            let image = image(&store, &mut store.lease().unwrap(), b"one", None).unwrap();
            store.tag(&name("a"), &image).unwrap();
            let lock = store.lock_instance("web").unwrap();
            let made = store.create_instance(&lock, record(&image)).unwrap();
            fs::write(made.path().join("overlay-1"), b"old").unwrap();
            let fault = Fault::after(changes);
            let removed = Store::open_with(&path, Files::with(fault.clone())).unwrap().remove_instance(&lock);
            let done = !fault.is_over();
            assert!(removed.is_ok() || !done);
            fault.lose(undo);
            match store.instance("web").unwrap() {
                Some(there) => assert!(there.path().join("overlay-1").exists() && !done),
                None => {
                    // Nothing that it wrote comes over the next one's image.
                    let next = store.create_instance(&lock, record(&image)).unwrap();
                    assert_eq!(crate::disk::kept(next.path()).unwrap(), []);
                }
            }
            store.gc().unwrap();
            assert_eq!(fs::read_dir(path.join("scratch")).map_or(0, Iterator::count), 0);
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_directory_without_a_record_is_no_machine() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = image(&store, &mut store.lease().unwrap(), b"one", None).unwrap();
    let left = store.instances_path().unwrap().join("web");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("overlay-1"), b"of another machine").unwrap();
    let lock = store.lock_instance("web").unwrap();
    let made = store.create_instance(&lock, record(&image)).unwrap();
    assert_eq!(crate::disk::kept(made.path()).unwrap(), []);
}

/// A store with an image `disk` of one layer.
fn with_disk(directory: &Path) -> (Store, Descriptor) {
    let store = Store::open(directory).unwrap();
    let (file, changes) = disk(&[(1, 1), (7, 2)]);
    let about = Commit::new(std::time::UNIX_EPOCH);
    let change = Change { file: &file, size: 1 << 20, changes };
    let image = store.commit(&mut store.lease().unwrap(), &about, Some(&change)).unwrap();
    store.tag(&name("disk"), &image).unwrap();
    (store, image)
}

#[test]
fn machines_that_start_together_share_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = with_disk(directory.path());
    let inode = || {
        let unpacked = store.unpack(&image, u64::MAX).unwrap();
        [&unpacked.layers[0], &unpacked.map].map(|path| fs::metadata(path).unwrap().ino())
    };
    let inodes: BTreeSet<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(inode)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
}

#[test]
fn damage_of_what_was_unpacked_is_found_and_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = with_disk(directory.path());
    let unpacked = store.unpack(&image, u64::MAX).unwrap();
    is_whole(&store);
    let raw = fs::File::options().write(true).open(&unpacked.layers[0]).unwrap();
    raw.write_all_at(b"x", 4096 + 5).unwrap();
    let wrong = store.verify(|_| {}).unwrap();
    assert!(matches!(&wrong[..], [Error::DamagedCopy { path }] if *path == unpacked.layers[0]), "{wrong:?}");
    assert_eq!(store.remove_corrupt(&wrong).unwrap(), 1);
    assert_eq!(store.unpack(&image, u64::MAX).unwrap(), unpacked);
    is_whole(&store);
    // What was put right meanwhile is not removed.
    let kernel = Digest::of(b"kernel");
    store.put(&mut store.lease().unwrap(), KERNEL, b"kernel").unwrap();
    let wrong = [Error::Corrupt { digest: kernel, found: Digest::of(b"") }];
    assert_eq!(store.remove_corrupt(&wrong).unwrap(), 0);
    assert!(store.has(&kernel));
}

#[test]
fn what_is_half_unpacked_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, image) = with_disk(directory.path());
    let unpacked = store.unpack(&image, u64::MAX).unwrap();
    let (raw, map) = (&unpacked.layers[0], unpacked.layers[0].with_extension("map"));
    // Another process is about to write the map, or was killed.
    fs::remove_file(&map).unwrap();
    is_whole(&store);
    assert_eq!(store.unpack(&image, u64::MAX).unwrap(), unpacked);
    // A map without its layer would be taken for a layer that is whole.
    fs::remove_file(raw).unwrap();
    let wrong = store.verify(|_| {}).unwrap();
    assert!(matches!(&wrong[..], [Error::DamagedCopy { path }] if *path == map), "{wrong:?}");
    assert_eq!(store.remove_corrupt(&wrong).unwrap(), 1);
    store.unpack(&image, u64::MAX).unwrap();
    assert!(raw.exists());
    is_whole(&store);
}

#[test]
fn older_versions_take_no_more_than_they_may() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = Store::open(&directory.path().join("elsewhere")).unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let (mut from, mut lease) = (elsewhere.lease().unwrap(), store.lease().unwrap());
    // Each version has the long message of the first one.
    let long = "x".repeat(100_000);
    let mut last: Option<Descriptor> = None;
    for count in 0..40 {
        let message = if count == 0 { long.as_str() } else { "" };
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(count);
        let about = Commit { parent: last.as_ref(), message, ..Commit::new(time) };
        last = Some(elsewhere.commit(&mut from, &about, None).unwrap());
    }
    let last = last.unwrap();
    let manifest = elsewhere.manifest(&last).unwrap();
    for (blob, kind) in [(&last, MANIFEST), (&manifest.config, CONFIG)] {
        let bytes = elsewhere.read_document(blob).unwrap();
        store.put(&mut lease, kind, &bytes).unwrap();
    }
    store.tag(&name("a"), &last).unwrap();
    let bytes = || {
        let blobs = fs::read_dir(store.path().join("blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = bytes();
    store.rebuild_within(&mut lease, &last, 1_000_000).unwrap();
    assert!(bytes() > before && bytes() <= before + 1_000_000, "{}", bytes());
    store.rebuild_within(&mut lease, &last, u64::MAX).unwrap();
    assert!(bytes() > 39 * before);
    assert_eq!(store.versions("a").unwrap().len(), 40);
}

#[test]
fn one_damaged_image_hides_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let bad = image(&store, &mut lease, b"one", None).unwrap();
    let good = image(&store, &mut lease, b"two", None).unwrap();
    store.tag(&name("bad"), &bad).unwrap();
    store.tag(&name("good"), &good).unwrap();
    let initramfs = initramfs::build(None).unwrap();
    for version in ["one", "two"] {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, version.as_bytes()).unwrap();
        store.add_kernel(version, &mut file, version, &initramfs, "").unwrap();
    }
    flip(&store.blob(&bad.digest));
    flip(&store.blob(&store.kernel("two").unwrap().image.digest));
    let names: Vec<_> = store.images().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["good:latest"]);
    assert_eq!(store.kernels().unwrap().len(), 1);
    assert_eq!(store.default_kernel().unwrap().unwrap().name, "one");
    assert_eq!(store.remove_kernel("two").unwrap().unwrap().name, "one");
}

#[test]
fn what_comes_from_elsewhere_takes_no_kernels_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let mut lease = store.lease().unwrap();
    let initramfs = initramfs::build(None).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let kernel = store.add_kernel("mine", &mut file, "6.1", &initramfs, "").unwrap();
    let other = image(&store, &mut lease, b"other", None).unwrap();
    store.tag(&name("good"), &other).unwrap();
    for taken in ["rvmm/kernel:default", "rvmm/kernel:mine", "rvmm/kernel:new"] {
        let mut archive = Vec::new();
        store
            .save(&[(name("good"), kernel.image.clone()), (name(taken), other.clone())], &mut archive)
            .unwrap();
        let error = store.load(&mut lease, &mut archive.as_slice(), 1 << 30).unwrap_err();
        assert!(error.to_string().contains(taken.rsplit(':').next().unwrap()), "{error}");
        // All names or none.
        assert_eq!(store.resolve("good").unwrap().digest, other.digest);
    }
    assert_eq!(store.default_kernel().unwrap().unwrap(), kernel);
    // A kernel is saved and loaded like every image.
    let mut archive = Vec::new();
    store.save(&[(name("rvmm/kernel:new"), kernel.image.clone())], &mut archive).unwrap();
    store.load(&mut lease, &mut archive.as_slice(), 1 << 30).unwrap();
    assert_eq!(store.kernels().unwrap().len(), 2);
}

#[test]
fn a_digest_that_begins_like_several_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease().unwrap();
    let image = image(&store, &mut lease, b"one", None).unwrap();
    let start = image.digest.hex()[..8].to_string();
    let mut index = store.read_index().unwrap();
    for (name, digits) in [("a", "0"), ("b", "1")] {
        let digest = Digest::from_hex(&format!("{start}{}", digits.repeat(56))).unwrap();
        index.set(name, &Descriptor::new(MANIFEST, digest, 1));
    }
    fs::write(store.path().join("index.json"), index.bytes()).unwrap();
    let error = store.resolve(&start).unwrap_err().to_string();
    assert!(error.contains("say more digits"), "{error}");
}

#[test]
fn versions_that_lead_nowhere_or_back() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = Store::open(&directory.path().join("elsewhere")).unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let mut lease = store.lease().unwrap();
    let first = image(&elsewhere, &mut elsewhere.lease().unwrap(), b"one", None).unwrap();
    let second = image(&store, &mut lease, b"two", Some(&first)).unwrap();
    let third = image(&store, &mut lease, b"three", Some(&second)).unwrap();
    drop(lease);
    store.tag(&name("a"), &third).unwrap();
    // What came before is not here: everything else is.
    let digests = |store: &Store| {
        store.versions("a").map(|found| found.iter().map(|one| one.digest).collect::<Vec<_>>())
    };
    assert_eq!(digests(&store).unwrap(), [third.digest, second.digest]);
    let error = store.resolve("a~2").unwrap_err().to_string();
    assert!(error.contains("only 1 commits before it here"), "{error}");
    assert_eq!(store.gc().unwrap().blobs, 0);
    is_whole(&store);
    // No document has its own digest in it, so whoever comes back to where they were reads another one: it is said to be corrupt.
    let circle = Config { author: "ada".into(), ..Config::default() };
    let manifest = Manifest::new(store.manifest(&second).unwrap().config, Vec::new(), &circle, Some(&third));
    fs::write(store.blob(&second.digest), manifest.bytes()).unwrap();
    for error in [store.resolve("a~2").map(drop), digests(&store).map(drop)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&second.digest.hex()), "{error}");
    }
    removes_nothing(&store, &second.digest.hex());
    assert_eq!(store.resolve("a").unwrap().digest, third.digest);
}
