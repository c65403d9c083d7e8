//! Chains of every kind: machines that were booted, restored in each way, emptied and swapped out, saved on any base, and
//! images that were folded.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use rvmm::memory::image::{Chain, Lazy, Mode, Origin, Source, fold};
use rvmm::memory::{Memory, Pages, allocate, clear, join_small_pages};
use rvmm::sys::frozen::PAGE;
use vm_memory::{Bytes, GuestAddress};

use super::{Image, RANGES, Random, capture, chain, contents, scribble, without_scan};
use crate::common::host;
use crate::common::swap::{Swap, push};
use crate::need;

/// What was saved: images, the top first, and what they describe.
struct Saved {
    images: Vec<Rc<Image>>,
    contents: Vec<u8>,
}

impl Saved {
    fn chain(&self) -> Chain {
        chain(self.images.iter().map(Rc::as_ref))
    }

    /// An image on top of `base` that is to describe `contents`, and to hold exactly the pages that differ.
    #[track_caller]
    fn new(image: Image, base: Option<&Saved>, contents: Vec<u8>) -> Self {
        let zeroes = vec![0; contents.len()];
        let below = base.map_or(&zeroes, |base| &base.contents);
        let pages = contents.as_chunks::<PAGE>().0.iter().zip(below.as_chunks::<PAGE>().0);
        let differ = pages.filter(|(page, below)| page != below).count();
        assert_eq!(image.1.data + image.1.zero, (differ * PAGE) as u64);
        let below = base.map_or(&[][..], |base| &base.images);
        let images = [&[Rc::new(image)], below].concat();
        let saved = Saved { images, contents };
        let (chain, mut page) = (saved.chain(), [0; PAGE]);
        for (number, expected) in saved.contents.as_chunks::<PAGE>().0.iter().enumerate() {
            chain.read_page(number as u64, &mut page).unwrap();
            assert!(page == *expected, "page {number}");
        }
        saved
    }

    /// A machine that goes on from it.
    fn restore(&self, mode: &Mode) -> (Arc<Memory>, Origin) {
        let chain = self.chain();
        let (memory, origin) = chain.map(&RANGES, mode, Pages::Transparent, &mut |_, _| {}).unwrap();
        let memory = Arc::new(memory);
        if matches!(mode, Mode::Lazy(_)) {
            let lazy = Lazy::start(&chain, Source::Files, &memory, |error| panic!("{error}")).unwrap();
            lazy.under_way().iter().for_each(|filled| filled.wait());
        }
        (memory, origin)
    }
}

/// Lets a machine live, and saves it again and again. `modes` are the ways in which it is restored.
fn live(seed: u64, modes: &[Mode], swap: Option<&Swap>) {
    let mut random = Random(seed);
    let mut memory = Arc::new(allocate(&RANGES, Pages::Transparent).unwrap());
    let mut origin = Origin::default();
    let mut saved: Vec<Saved> = Vec::new();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let any = saved.len().checked_sub(1).map(|last| random.below(last as u64 + 1) as usize);
        seen.insert(match (random.below(9), any) {
            // As when the guest restarts the machine, and reads what is not there.
            (0, _) => {
                clear(&memory).unwrap();
                origin = Origin::default();
                assert!(contents(&memory).iter().all(|&byte| byte == 0));
                "emptied"
            }
            (1, _) => {
                let start = random.below(512) * PAGE as u64;
                memory.write_slice(&vec![random.below(2) as u8; 2 << 20], GuestAddress(start)).unwrap();
                "a large piece"
            }
            (2, _) => {
                // The host may have no huge page.
                let _ = join_small_pages(&memory);
                "joined"
            }
            (3, _) if swap.is_some() => {
                push(std::process::id());
                "swapped"
            }
            (4, Some(any)) => {
                let mode = &modes[random.below(modes.len() as u64) as usize];
                (memory, origin) = saved[any].restore(mode);
                if random.below(2) == 0 {
                    assert!(contents(&memory) == saved[any].contents);
                }
                "restored"
            }
            (5, Some(any)) => {
                let onto = saved.get(random.below(saved.len() as u64 + 1) as usize);
                let (base, directory) = (onto.map(Saved::chain), tempfile::tempdir().unwrap());
                let chain = saved[any].chain();
                let folded = fold(&chain, base.as_ref(), directory.path(), &mut |_, _| {}).unwrap();
                let folded = Saved::new(Image(directory, folded), onto, saved[any].contents.clone());
                saved.push(folded);
                "folded"
            }
            _ => {
                let pages = random.below(100);
                scribble(&memory, &mut random, pages);
                "single pages"
            }
        });
        let base = saved.get(random.below(saved.len() as u64 + 2) as usize);
        let below = base.map(Saved::chain);
        let save = || capture(&memory, &origin, below.as_ref());
        let image = if random.below(2) == 0 { save() } else { without_scan(save) };
        let next = Saved::new(image, base, contents(&memory));
        saved.push(next);
    }
    assert_eq!(seen.len(), if swap.is_some() { 7 } else { 6 }, "{seen:?}");
}

#[test]
fn every_machine_is_saved_exactly_on_every_base() {
    let modes = [Mode::Cow, Mode::Copy, Mode::Lazy(None)];
    // Not everybody may fill memory when it is touched.
    let modes = if host::root().is_ok() { &modes[..] } else { &modes[..2] };
    (1..=2).for_each(|seed| live(seed, modes, None));
}

#[test]
fn every_machine_is_saved_exactly_while_the_host_swaps() {
    let swap = Swap::new();
    need!(swap.as_ref().map(drop).map_err(String::clone));
    (3..=4).for_each(|seed| live(seed, &[Mode::Cow, Mode::Copy, Mode::Lazy(None)], swap.as_ref().ok()));
}
