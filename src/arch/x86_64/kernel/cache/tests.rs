use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;

use tempfile::TempDir;

use super::*;

const ELF: &[u8] = b"the decompressed kernel";

/// A cache and a boot image beside it, old enough to be remembered.
fn cache() -> (TempDir, Cache, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("bzImage");
    fs::write(&image, "boot image").unwrap();
    sleep(SETTLED * 2);
    let cache = Cache::open(&directory.path().join("new/cache")).unwrap();
    (directory, cache, image)
}

fn stat(image: &Path) -> Metadata {
    fs::metadata(image).unwrap()
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
    let (_directory, cache, image) = cache();
    let digest = blake3::hash(b"payload");
    assert!(cache.recall(&stat(&image)).is_none() && cache.find(&digest, &stat(&image)).is_none());
    assert_eq!(read(&cache.store(&digest, &stat(&image), ELF).unwrap()), ELF);
    assert_eq!(read(&cache.recall(&stat(&image)).unwrap()), ELF);
    assert_eq!(read(&cache.find(&digest, &stat(&image)).unwrap()), ELF);
    assert!(cache.find(&blake3::hash(b"other"), &stat(&image)).is_none());
}

#[test]
fn files_are_for_their_user_alone() {
    let (_directory, cache, image) = cache();
    cache.store(&blake3::hash(b""), &stat(&image), ELF).unwrap();
    let mode = |path: &Path| stat(path).permissions().mode() & 0o777;
    assert_eq!(mode(&cache.directory), 0o700);
    for path in files(&cache, "elf").iter().chain(&files(&cache, "index")) {
        assert_eq!(mode(path), 0o600);
    }
    assert!(files(&cache, "tmp").is_empty());
}

#[test]
fn a_changed_image_is_another() {
    let (_directory, cache, image) = cache();
    cache.store(&blake3::hash(b""), &stat(&image), ELF).unwrap();
    fs::write(&image, "BOOT IMAGE").unwrap();
    assert!(cache.recall(&stat(&image)).is_none());
    let copy = image.with_extension("copy");
    fs::copy(&image, &copy).unwrap();
    assert!(cache.recall(&stat(&copy)).is_none());
}

#[test]
fn an_image_that_may_still_change_is_not_remembered() {
    let (_directory, cache, image) = cache();
    fs::write(&image, "just written").unwrap();
    cache.store(&blake3::hash(b""), &stat(&image), ELF).unwrap();
    assert!(files(&cache, "index").is_empty());
    sleep(SETTLED * 2);
    assert!(cache.find(&blake3::hash(b""), &stat(&image)).is_some());
    assert!(cache.recall(&stat(&image)).is_some(), "finding it by digest remembers it");
}

#[test]
fn a_damaged_file_is_as_good_as_absent() {
    let (_directory, cache, image) = cache();
    let digest = blake3::hash(b"payload");
    cache.store(&digest, &stat(&image), ELF).unwrap();
    let path = cache.elf_path(&digest);
    let whole = fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        cache.recall(&stat(&image)).is_none() && cache.find(&digest, &stat(&image)).is_none()
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
    cache.store(&digest, &stat(&image), ELF).unwrap();
    assert_eq!(read(&cache.recall(&stat(&image)).unwrap()), ELF);
}

#[test]
fn a_damaged_index_is_as_good_as_absent() {
    let (_directory, cache, image) = cache();
    cache.store(&blake3::hash(b"payload"), &stat(&image), ELF).unwrap();
    let [path] = &files(&cache, "index")[..] else { panic!() };
    let whole = fs::read_to_string(path).unwrap();
    for len in 0..whole.len() {
        fs::write(path, &whole[..len]).unwrap();
        assert!(cache.recall(&stat(&image)).is_none(), "{len} bytes");
    }
    for text in ["\n", "1\n", "2 3 4\n", "1 1 1 1 1 1 1 1 xyz 1 1 1 1 1 1 1\n", "\u{fffd}\n"] {
        fs::write(path, text).unwrap();
        assert!(cache.recall(&stat(&image)).is_none(), "{text}");
    }
    fs::write(path, &whole).unwrap();
    assert!(cache.recall(&stat(&image)).is_some());
}

#[test]
fn old_kernels_and_remains_of_crashes_go() {
    let (_directory, cache, image) = cache();
    let remains = cache.directory.join("1-1.tmp");
    let young = cache.directory.join("1-2.tmp");
    File::create(&remains).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();
    File::create(&young).unwrap();
    for number in 0u8..12 {
        cache.store(&blake3::hash(&[number]), &stat(&image), ELF).unwrap();
        sleep(Duration::from_millis(12));
    }
    assert_eq!(files(&cache, "elf").len(), KEEP);
    assert!(cache.elf_path(&blake3::hash(&[11])).exists() && !cache.elf_path(&blake3::hash(&[0])).exists());
    assert!(!remains.exists() && young.exists());
}
