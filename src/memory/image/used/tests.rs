use std::fs::{self, File};

use vm_memory::{Bytes, GuestAddress};

use super::super::{Index, Kind, Mode, PAGES_FILE};
use super::*;
use crate::memory::Pages as HostPages;

const RAM: u64 = 8 << 20;

fn pages(pages: impl IntoIterator<Item = u64>) -> Used {
    let mut used = Used::none(RAM);
    pages.into_iter().for_each(|page| used.insert(page..page + 1));
    used
}

#[test]
fn reads_what_it_wrote_and_nothing_of_another_length_or_format() {
    let used = pages([0, 1, 2, 700, 2047]);
    assert_eq!((used.count(), used.contains(2), used.contains(3)), (5, true, false));
    let bytes = used.to_bytes();
    assert_eq!(Used::parse(&bytes, RAM), Some(used));
    assert_eq!(Used::parse(&bytes, RAM + 64 * 4096), None);
    for length in 0..bytes.len() {
        assert_eq!(Used::parse(&bytes[..length], RAM), None);
    }
    for at in 0..HEADER {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(Used::parse(&changed, RAM), None);
    }
    // RAM that is not a multiple of eight pages, and none at all.
    for ram in [0, 4096, 9 * 4096] {
        assert_eq!(Used::parse(&Used::none(ram).to_bytes(), ram), Some(Used::none(ram)));
    }
}

#[test]
fn what_is_close_is_read_at_once() {
    let used = pages([3, 12, 13, 23, 100].into_iter().chain(512..600));
    assert_eq!(used.within(0..2048), [3..14, 23..24, 100..101, 512..600]);
    assert_eq!(used.within(13..520), [13..14, 23..24, 100..101, 512..520]);
    assert_eq!(used.within(24..100), []);
}

#[test]
fn it_is_recorded_when_much_is_different() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path()).unwrap();
    let (none, first) = (Used::none(RAM), pages(0..100));
    record(&directory, &none, &none).unwrap();
    assert_eq!(recorded(&directory, RAM), None);
    assert!(!root.path().join(USED_FILE).exists());
    record(&directory, &none, &first).unwrap();
    assert_eq!(recorded(&directory, RAM), Some(first.clone()));
    record(&directory, &first, &first.with(&pages(90..125))).unwrap();
    assert_eq!(recorded(&directory, RAM), Some(first.clone()));
    let more = first.with(&pages(200..226));
    record(&directory, &first, &more).unwrap();
    assert_eq!(recorded(&directory, RAM), Some(more.clone()));
    record(&directory, &more, &pages(0..95)).unwrap();
    assert_eq!(recorded(&directory, RAM), Some(more.clone()));
    record(&directory, &more, &pages(0..94)).unwrap();
    assert_eq!(recorded(&directory, RAM), Some(pages(0..94)));
    // Another memory's, an endless one, none at all.
    assert_eq!(recorded(&directory, RAM / 2), None);
    fs::remove_file(root.path().join(USED_FILE)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.path().join(USED_FILE)).unwrap();
    assert_eq!(recorded(&directory, RAM), None);
}

/// An image in a directory of its own that has these pages, each with something in it.
fn image(root: &std::path::Path, name: &str, pages: impl IntoIterator<Item = u64>) -> Directory {
    let path = root.join(name);
    fs::create_dir(&path).unwrap();
    let file = File::create(path.join(PAGES_FILE)).unwrap();
    let mut index = Index::new(RAM);
    for page in pages {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; PAGE], page * PAGE as u64).unwrap();
        index.push(page, Kind::Data);
    }
    file.set_len(RAM).unwrap();
    file.sync_all().unwrap();
    index.digests = vec![[0; 32]; index.chunks().len()];
    fs::write(path.join(super::super::INDEX_FILE), index.to_bytes()).unwrap();
    Directory::open(&path).unwrap()
}

/// The pages of an image that the host has in its cache.
fn cached(directory: &Directory) -> Vec<u64> {
    let file = directory.file(PAGES_FILE).unwrap();
    let mut there = vec![0u8; (RAM / PAGE as u64) as usize];
    // SAFETY: a new mapping of the file, which is asked about and given back.
    unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let start = libc::mmap(std::ptr::null_mut(), RAM as usize, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mincore(start, RAM as usize, there.as_mut_ptr()), 0);
        libc::munmap(start, RAM as usize);
    }
    (0..).zip(there).filter(|(_, there)| there & 1 != 0).map(|(page, _)| page).collect()
}

/// Takes an image out of the host's cache.
fn forget(directory: &Directory) {
    let file = directory.file(PAGES_FILE).unwrap();
    // SAFETY: a call without pointers.
    unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[test]
fn a_machine_leaves_for_the_next_what_it_has_used_of_each_image_of_a_chain() {
    let root = tempfile::tempdir().unwrap();
    let lower = image(root.path(), "lower", (0..512).chain(1024..1536));
    let upper = Arc::new(image(root.path(), "upper", 256..512));
    let index = |directory: &Directory| directory.read(super::super::INDEX_FILE, 1 << 20).unwrap();
    let mut chain = Chain::default();
    chain.push(&upper, &index(&upper), true).unwrap();
    chain.push(&lower, &index(&lower), true).unwrap();
    let machine = |touched: &[u64]| {
        let (memory, origin) =
            chain.map(&[(GuestAddress(0), RAM)], &Mode::Cow, HostPages::Transparent, &mut |_, _| {}).unwrap();
        let memory = Arc::new(memory);
        let mut working_set = WorkingSet::new(&chain, &upper);
        working_set.start(&memory, &origin);
        touched.iter().for_each(|page| memory.write_obj(1u8, GuestAddress(page * PAGE as u64)).unwrap());
        drop(working_set);
    };
    // The last one is of no image, and nobody has to read it.
    machine(&[0, 300, 1100, 2000]);
    let used = recorded(&upper, RAM).unwrap();
    assert!([0, 300, 1100].iter().all(|&page| used.contains(page)) && !used.contains(2000), "{used:?}");
    assert!(used.count() < 100, "{used:?}");
    forget(&lower);
    forget(&upper);
    if !cached(&lower).is_empty() {
        return eprintln!("not tested: this file system does not give up what it has in its cache");
    }
    chain.read_ahead(&used, || true).unwrap();
    // It comes from the disk meanwhile.
    while !(cached(&lower).contains(&0) && cached(&lower).contains(&1100) && cached(&upper).contains(&300)) {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(cached(&lower).len() < 300 && cached(&upper).len() < 200);
    // Only the upper one has a record.
    assert_eq!(recorded(&lower, RAM), None);
}
