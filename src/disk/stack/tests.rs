//! Disks that are frozen while they are written to.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::super::model::{ask, read};
use super::super::{Config, Opened, Place, open};
use super::*;
use crate::memory::{Buffers, allocate};
use crate::testing::qemu_img;

const SIZE: usize = 1 << 20;

/// A directory with a disk of 0xa5 bytes, and what is asked of it.
fn world() -> (TempDir, PathBuf, Config) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, vec![0xa5; SIZE]).unwrap();
    let config = Config::new(&path);
    (directory, path, config)
}

fn write(disk: &mut dyn Disk, offset: u64, byte: u8) {
    let memory = Arc::new(allocate(&[(GuestAddress(0), 4096)], Default::default()).unwrap());
    let mut buffers = Buffers::new(&memory);
    buffers.push(GuestAddress(0), 4096).unwrap();
    buffers.write_at(0, &[byte; 4096]);
    ask(disk, Request::Write { offset, buffers }).unwrap();
}

fn byte(disk: &mut dyn Disk, offset: u64) -> u8 {
    read(disk, &Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Default::default()).unwrap()), offset, 1)[0]
}

/// A disk over what was stored in a directory.
fn stored(directory: &Path, names: &[(PathBuf, String)]) -> Box<dyn Disk> {
    let paths: Vec<_> = names.iter().map(|(name, _)| directory.join(name)).collect();
    let files = paths.iter().map(|path| Some(Arc::new(File::open(path).unwrap()))).collect();
    let (snapshot, overlay) = (Some(Opened(files)), Some(Place::Nameless(directory.into())));
    open(&Config { layers: paths[1..].to_vec(), overlay, snapshot, ..Config::new(&paths[0]) }).unwrap()
}

#[test]
fn a_capture_that_came_to_nothing_does_not_harm_the_next() {
    let (directory, _, config) = world();
    let mut disk = open(&config).unwrap();
    drop(disk.freeze().unwrap());
    write(disk.as_mut(), 0, 1);
    // Its layer is never written.
    drop(disk.freeze().unwrap());
    write(disk.as_mut(), 4096, 2);
    let contents = disk.freeze().unwrap().unwrap();
    let names = contents.store(directory.path(), directory.path(), 0, &[]).unwrap();
    let mut copy = stored(directory.path(), &names);
    assert_eq!([0, 4096, 8192].map(|at| byte(copy.as_mut(), at)), [1, 2, 0xa5]);
}

#[test]
fn the_users_disk_has_what_its_machine_never_flushed() {
    let (_directory, path, config) = world();
    let mut disk = open(&config).unwrap();
    write(disk.as_mut(), 0, 1);
    // The first capture comes to nothing, and so does the second.
    for number in 1..3 {
        drop(disk.freeze().unwrap());
        write(disk.as_mut(), number * 4096, 1 + number as u8);
    }
    drop(disk);
    let bytes = fs::read(&path).unwrap();
    assert_eq!([0, 4096, 8192, 12288].map(|at: usize| bytes[at]), [1, 2, 3, 0xa5]);
}

#[test]
fn what_was_never_written_is_frozen_like_the_rest() {
    let (directory, _, config) = world();
    let overlay = Some(Place::Nameless(directory.path().into()));
    let mut disk = open(&Config { overlay, ..config }).unwrap();
    let contents = disk.freeze().unwrap().unwrap();
    write(disk.as_mut(), 4096, 2);
    let names = contents.store(directory.path(), directory.path(), 0, &[]).unwrap();
    assert_eq!(names.len(), 2);
    assert_eq!(byte(stored(directory.path(), &names).as_mut(), 4096), 0xa5);
    let names = disk.freeze().unwrap().unwrap().store(directory.path(), directory.path(), 1, &[]).unwrap();
    assert_eq!(byte(stored(directory.path(), &names).as_mut(), 4096), 2);
}

#[test]
fn what_stands_below_is_exchanged_if_it_covers_all() {
    let (directory, path, config) = world();
    let other = directory.path().join("other");
    fs::copy(&path, &other).unwrap();
    let base = |private| {
        let disk = open(&Config::new(&other)).unwrap();
        let files = vec![Arc::new(File::open(&other).unwrap())];
        Base { disk, files, image: None, private, path: other.clone() }
    };
    let mut disk = open(&config).unwrap();
    assert!(!disk.stand_on(base(false), 0), "nothing is on top yet");
    for number in 1..3u8 {
        drop(disk.freeze().unwrap());
        write(disk.as_mut(), u64::from(number) * 4096, number);
    }
    for above in [0, 2, usize::MAX - 1, usize::MAX] {
        assert!(!disk.stand_on(base(false), above), "one is below the one that is written, not {above}");
    }
    assert!(!disk.stand_on(base(true), 1), "nobody may change it");
    assert_eq!([0, 4096, 8192].map(|at| byte(disk.as_mut(), at)), [0xa5, 1, 2]);
    // It is taken at its word.
    assert!(disk.stand_on(base(false), 1));
    assert_eq!([0, 4096, 8192].map(|at| byte(disk.as_mut(), at)), [0xa5, 0xa5, 2]);
}

#[test]
fn captures_at_once_are_written_in_any_order() {
    let (directory, _, config) = world();
    let mut disk = open(&config).unwrap();
    drop(disk.freeze().unwrap());
    write(disk.as_mut(), 0, 1);
    let first = disk.freeze().unwrap().unwrap();
    write(disk.as_mut(), 0, 2);
    let second = disk.freeze().unwrap().unwrap();
    for (index, contents, expected) in [(2, second, 2), (1, first, 1)] {
        let names = contents.store(directory.path(), directory.path(), index, &[]).unwrap();
        assert_eq!(byte(stored(directory.path(), &names).as_mut(), 0), expected);
    }
}

#[test]
fn the_users_file_is_never_part_of_a_snapshot() {
    for overlay in [None, Some(())] {
        let (directory, path, config) = world();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let place = overlay.map(|()| Place::Nameless(directory.path().into()));
        let mut disk = open(&Config { overlay: place, ..config }).unwrap();
        let contents = disk.freeze().unwrap().unwrap();
        let names = contents.store(directory.path(), directory.path(), 0, &[]).unwrap();
        let stored = fs::metadata(directory.path().join(&names[0].0)).unwrap();
        assert_ne!(stored.ino(), fs::metadata(&path).unwrap().ino());
        assert_eq!(stored.mode() & 0o777, 0o600);
    }
}

#[test]
fn overlays_stand_beside_the_file_itself() {
    let (directory, path, _) = world();
    fs::create_dir(directory.path().join("elsewhere")).unwrap();
    let link = directory.path().join("elsewhere/link");
    symlink("../disk", &link).unwrap();
    let mut disk = open(&Config::new(&link)).unwrap();
    drop(disk.freeze().unwrap());
    write(disk.as_mut(), 0, 7);
    ask(disk.as_mut(), Request::Flush).unwrap();
    assert!(directory.path().join("disk.overlay-1").exists());
    // As after a kill: nothing was merged.
    let aside = directory.path().join("aside");
    fs::copy(directory.path().join("disk.overlay-1"), &aside).unwrap();
    drop(disk);
    fs::write(&path, vec![0xa5; SIZE]).unwrap();
    fs::copy(aside, directory.path().join("disk.overlay-1")).unwrap();
    assert_eq!(byte(open(&Config::new(&path)).unwrap().as_mut(), 0), 7);
}

#[test]
fn what_a_killed_machine_wrote_goes_into_no_other_disk() {
    let (directory, path, config) = world();
    let mut disk = open(&config).unwrap();
    for number in 1..3u8 {
        drop(disk.freeze().unwrap());
        write(disk.as_mut(), u64::from(number) * 4096, number);
        ask(disk.as_mut(), Request::Flush).unwrap();
    }
    // As after a kill, and before anything is merged.
    let killed = |number: u32| directory.path().join(format!("killed-{number}"));
    let beside = |number: u32| directory.path().join(format!("disk.overlay-{number}"));
    for number in [1, 2] {
        fs::copy(beside(number), killed(number)).unwrap();
    }
    drop(disk);
    [1, 2].iter().for_each(|&number| fs::rename(killed(number), beside(number)).unwrap());
    // Whoever wrote to it since means what is in it now.
    fs::write(&path, vec![0x5a; SIZE]).unwrap();
    let error = open(&config).err().unwrap().to_string();
    assert!(error.contains("disk.overlay-1") && error.contains("touch"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), [0x5a; SIZE]);
    // One who knows better says so. It is merged then, also by the next one if that is broken off.
    for number in [1, 2] {
        let overlay = File::options().write(true).open(beside(number)).unwrap();
        overlay.set_modified(std::time::SystemTime::now()).unwrap();
    }
    fs::write(beside(3), "none").unwrap();
    assert!(open(&config).is_err() && !beside(1).exists());
    fs::remove_file(beside(3)).unwrap();
    let mut disk = open(&config).unwrap();
    assert_eq!([0, 4096, 8192].map(|at| byte(disk.as_mut(), at)), [0x5a, 1, 2]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_copy_that_a_snapshot_has_is_made_once() {
    let (directory, path, config) = world();
    let mut disk = open(&config).unwrap();
    let mut store = |name: &str, earlier: &[Earlier]| {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let names = disk.freeze().unwrap().unwrap().store(&place, &place, 0, earlier).unwrap();
        let stored = place.join(&names[0].0);
        assert_eq!(fs::read(&stored).unwrap(), [0xa5; SIZE]);
        (fs::metadata(&stored).unwrap().ino(), stored, names[0].1.clone())
    };
    let (first, one, digest) = store("one", &[]);
    let (second, two, _) = store("two", &[]);
    assert_eq!((first, fs::metadata(&path).unwrap().nlink()), (second, 1));
    // Written since, or gone: it is copied again, or taken from a snapshot that has it for sure.
    fs::write(&two, vec![0xa5; SIZE]).unwrap();
    let (third, three, _) = store("three", &[]);
    assert_ne!(third, first);
    fs::rename(directory.path().join("three"), directory.path().join("moved")).unwrap();
    let moved = directory.path().join("moved").join(three.file_name().unwrap());
    let earlier = |path: &Path, digest: &str| (File::open(path).unwrap(), digest.to_string());
    let (fourth, ..) =
        store("four", &[earlier(&path, &digest), earlier(&one, "00"), earlier(&moved, &digest)]);
    assert_eq!((fourth, fs::metadata(&path).unwrap().nlink()), (third, 1));
    fs::remove_dir_all(directory.path().join("four")).unwrap();
    fs::write(&moved, vec![0xa6; SIZE]).unwrap();
    let (fifth, ..) = store("five", &[earlier(&moved, &digest)]);
    assert_ne!(fifth, third);
}

#[test]
fn a_qcow2_image_is_frozen_as_a_raw_disk_is() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return crate::testing::skip("qemu-img is not installed (Debian package qemu-utils)");
    }
    for nameless in [false, true] {
        let (directory, base, _) = world();
        qemu_img(directory.path(), "create -q -f qcow2 -b disk -F raw top.qcow2 2M");
        let path = directory.path().join("top.qcow2");
        let overlay = nameless.then(|| Place::Nameless(directory.path().into()));
        let config = Config { overlay, ..Config::new(&path) };
        let mut disk = open(&config).unwrap();
        let zero = |at: u64| Request::WriteZeroes { offset: at, len: 4096, unmap: true };
        write(disk.as_mut(), 0, 1);
        ask(disk.as_mut(), zero(4096)).unwrap();
        let snapshot = |disk: &mut Box<dyn Disk>, name: &str| {
            let contents = disk.freeze().unwrap().unwrap();
            let place = directory.path().join(name);
            fs::create_dir(&place).unwrap();
            (contents.store(&place, &place, 0, &[]).unwrap(), place)
        };
        let places = [0, 4096, 8192, 12288, SIZE as u64];
        let (names, one) = snapshot(&mut disk, "one");
        write(disk.as_mut(), 8192, 2);
        ask(disk.as_mut(), zero(12288)).unwrap();
        let (later, two) = snapshot(&mut disk, "two");
        write(disk.as_mut(), 8192, 3);
        ask(disk.as_mut(), Request::Flush).unwrap();
        let inode = |place: &Path| fs::metadata(place.join("disk-0-0")).unwrap().ino();
        assert_eq!((names[0].1.as_str(), inode(&one)), (later[0].1.as_str(), inode(&two)));
        for (place, names, expected) in
            [(&one, &names, [1, 0, 0xa5, 0xa5, 0]), (&two, &later, [1, 0, 2, 0, 0])]
        {
            let mut copy = stored(place, names);
            assert_eq!(copy.geometry().size, 2 * SIZE as u64);
            assert_eq!(places.map(|at| byte(copy.as_mut(), at)), expected);
        }
        drop(disk);
        assert!(!directory.path().join("top.qcow2.overlay-1").exists());
        qemu_img(directory.path(), "check -q top.qcow2");
        let expected = if nameless { [0xa5, 0xa5, 0xa5, 0xa5, 0] } else { [1, 0, 3, 0, 0] };
        let mut again = open(&Config::new(&path)).unwrap();
        assert_eq!(places.map(|at| byte(again.as_mut(), at)), expected);
        assert_eq!(fs::read(base).unwrap(), [0xa5; SIZE]);
    }
}
