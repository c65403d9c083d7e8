//! Memory of which the host has put a part into swap space.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rvmm::memory::image::{Mode, Origin, write};
use rvmm::memory::{Pages, allocate, join_small_pages};
use rvmm::sys::frozen::{Frozen, PAGE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Image, RANGES, capture, chain, contents, without_scan};
use crate::common::eventually;
use crate::common::swap::{self, Swap};
use crate::need;

/// Which of the first `count` pages from `start` on the host has put into swap space.
fn swapped(start: usize, count: usize) -> Vec<usize> {
    let mut entries = vec![0; count * 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entries, (start / PAGE * 8) as u64).unwrap();
    let entries = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_ne_bytes(*entry));
    entries.enumerate().filter(|(_, entry)| entry & 1 << 62 != 0).map(|(page, _)| page).collect()
}

/// Has the host put so many of these pages into swap space.
fn swap_out(start: usize, count: usize, at_least: usize) {
    // Until no other test has a copy of this process, with which it shares them.
    let out = || {
        swap::push(std::process::id());
        swapped(start, count).len() >= at_least
    };
    assert!(eventually(out), "{} of {count} pages are swapped out", swapped(start, count).len());
}

#[test]
fn swapped_pages_are_found_and_read() {
    let swap = Swap::new();
    need!(swap.as_ref().map(drop).map_err(String::clone));
    // Each third page of what is mapped from an image, and all of the rest, in huge pages where the host has them.
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    (0..1024).for_each(|page| memory.write_obj(page + 1, GuestAddress(page * PAGE as u64)).unwrap());
    let below = capture(&memory, &Origin::default(), None);
    let base = chain([&below]);
    let (memory, origin) = base.map(&RANGES, &Mode::Cow, Pages::Transparent, &mut |_, _| {}).unwrap();
    assert_eq!(origin.mapped, [(0, 1024)]);
    (0..1024).step_by(3).for_each(|page| memory.write_obj(!page, GuestAddress(page * PAGE as u64)).unwrap());
    memory.write_slice(&[5; 2 << 20], GuestAddress(1 << 32)).unwrap();
    let before = contents(&memory);
    let start = |address| memory.get_host_address(GuestAddress(address)).unwrap() as usize;
    let (low, high) = (start(0), start(1 << 32));
    let single = (0..1024).step_by(3).map(|page| low + page * PAGE..low + (page + 1) * PAGE);
    let all = [low..low + (4 << 20), high..high + (2 << 20)];
    let expected: Vec<_> = single.chain([all[1].clone()]).collect();

    swap_out(high, 512, 400);
    swap_out(low, 1024, 300);
    let frozen = Frozen::fork().unwrap();
    let own = || all.clone().map(|range| frozen.own(range).unwrap()).concat();
    assert!(own() == expected && without_scan(own) == expected);
    for base in [None, Some(&base)] {
        for look in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let write = || write(&frozen, &memory, &origin, base, directory.path(), &mut |_, _| {}).unwrap();
            let written = if look { without_scan(write) } else { write() };
            let image = Image(directory, written);
            assert_eq!(image.1.data, (512 + if base.is_some() { 342 } else { 1024 }) * PAGE as u64);
            let all = if base.is_some() { chain([&image, &below]) } else { chain([&image]) };
            let (copy, _) = all.map(&RANGES, &Mode::Copy, Pages::Transparent, &mut |_, _| {}).unwrap();
            assert!(contents(&copy) == before);
        }
    }
    drop(frozen);
    // What was read was the copy's.
    assert!(swapped(high, 512).len() >= 400);
    assert!(contents(&memory) == before);
}

/// Small pages, of which the host has put some into swap space.
#[test]
fn what_the_host_has_put_away_is_not_brought_back_for_huge_pages() {
    let swap = Swap::new();
    need!(swap.as_ref().map(drop).map_err(String::clone));
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    (0..1024).for_each(|page| memory.write_obj(!page, GuestAddress(page * PAGE as u64)).unwrap());
    let start = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
    swap_out(start, 1024, 1000);
    let read = |page: u64| memory.read_obj::<u64>(GuestAddress(page * PAGE as u64)).unwrap();
    assert!((0..1024).filter(|page| page % 4 != 0).all(|page| read(page) == !page));
    let away = swapped(start, 1024);
    assert!(away.len() >= 200);
    need!(join_small_pages(&memory).map_err(|error| format!("no huge pages: {error}")));
    assert_eq!(swapped(start, 1024), away);
    assert!((0..1024).all(|page| read(page) == !page));
}
