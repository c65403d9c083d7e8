use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;

use tempfile::TempDir;

use super::*;

const ELF: &[u8] = b"the decompressed kernel";

/// A directory with a boot image that is old enough to be remembered.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bzImage"), "boot image").unwrap();
    sleep(SETTLED * 2);
    directory
}

/// A cache for the image as it is now.
fn cache(directory: &TempDir) -> Cache {
    let image = directory.path().join("bzImage");
    Cache::open(&directory.path().join("new/cache"), fs::metadata(image).unwrap()).unwrap()
}

fn read(source: &Source) -> Vec<u8> {
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

fn files(cache: &Cache, extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(&cache.directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

#[test]
fn what_was_stored_is_recalled() {
    let directory = directory();
    let cache = cache(&directory);
    let digest = blake3::hash(b"payload");
    assert!(cache.recall().is_none() && cache.find(&digest).is_none());
    assert_eq!(read(&cache.store(&digest, ELF).unwrap()), ELF);
    assert_eq!(read(&cache.recall().unwrap()), ELF);
    assert_eq!(read(&cache.find(&digest).unwrap()), ELF);
    assert!(cache.find(&blake3::hash(b"other")).is_none());
}

#[test]
fn files_are_for_their_user_alone() {
    let directory = directory();
    let cache = cache(&directory);
    cache.store(&blake3::hash(b""), ELF).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&cache.directory), 0o700);
    for path in files(&cache, "elf").iter().chain(&files(&cache, "index")) {
        assert_eq!(mode(path), 0o600);
    }
    assert!(files(&cache, "tmp").is_empty());
}

#[test]
fn a_changed_image_is_another() {
    let directory = directory();
    cache(&directory).store(&blake3::hash(b""), ELF).unwrap();
    assert!(cache(&directory).recall().is_some());
    let image = directory.path().join("bzImage");
    fs::write(&image, "BOOT IMAGE").unwrap();
    assert!(cache(&directory).recall().is_none());
    fs::remove_file(&image).unwrap();
    fs::write(&image, "boot image").unwrap();
    assert!(cache(&directory).recall().is_none());
}

#[test]
fn an_image_that_may_still_change_is_not_remembered() {
    let directory = directory();
    let early = loop {
        let start = std::time::Instant::now();
        fs::write(directory.path().join("bzImage"), "just written").unwrap();
        let cache = cache(&directory);
        // The host may have had something else to do.
        if start.elapsed() < SETTLED / 2 {
            break cache;
        }
    };
    sleep(SETTLED * 2);
    // However long it takes to make: it may have changed just after it was looked at.
    early.store(&blake3::hash(b""), ELF).unwrap();
    assert!(files(&early, "index").is_empty());
    let later = cache(&directory);
    assert!(later.recall().is_none() && later.find(&blake3::hash(b"")).is_some());
    assert!(later.recall().is_some(), "finding it by digest remembers it");
}

#[test]
fn a_damaged_file_is_as_good_as_absent() {
    let directory = directory();
    let cache = cache(&directory);
    let digest = blake3::hash(b"payload");
    cache.store(&digest, ELF).unwrap();
    let path = cache.elf_path(&digest);
    let whole = fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        cache.recall().is_none() && cache.find(&digest).is_none()
    };
    for len in 0..whole.len() {
        assert!(damaged(&whole[..len]), "{len} bytes");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(damaged(&bytes), "byte {at}");
    }
    assert!(damaged(&[&whole[..], b"more"].concat()));
    cache.store(&digest, ELF).unwrap();
    assert_eq!(read(&cache.recall().unwrap()), ELF);
}

#[test]
fn a_damaged_index_is_as_good_as_absent() {
    let directory = directory();
    let cache = cache(&directory);
    cache.store(&blake3::hash(b"payload"), ELF).unwrap();
    let [path] = &files(&cache, "index")[..] else { panic!() };
    let whole = fs::read_to_string(path).unwrap();
    for len in 0..whole.len() {
        fs::write(path, &whole[..len]).unwrap();
        assert!(cache.recall().is_none(), "{len} bytes");
    }
    for text in ["\n", "1\n", "2 3 4\n", "1 1 1 1 1 1 1 1 xyz 1 1 1 1 1 1 1\n", "\u{fffd}\n"] {
        fs::write(path, text).unwrap();
        assert!(cache.recall().is_none(), "{text}");
    }
    fs::write(path, &whole).unwrap();
    assert!(cache.recall().is_some());
}

#[test]
fn old_kernels_and_remains_of_crashes_go() {
    let directory = directory();
    let cache = cache(&directory);
    let remains = cache.directory.join("1-1.tmp");
    let young = cache.directory.join("1-2.tmp");
    File::create(&remains).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();
    File::create(&young).unwrap();
    for number in 0u8..12 {
        cache.store(&blake3::hash(&[number]), ELF).unwrap();
        sleep(Duration::from_millis(12));
    }
    assert_eq!(files(&cache, "elf").len(), KEEP);
    assert!(cache.elf_path(&blake3::hash(&[11])).exists() && !cache.elf_path(&blake3::hash(&[0])).exists());
    assert!(!remains.exists() && young.exists());
}
