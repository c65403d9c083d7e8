//! Memory that is frozen by fork, and the images made of it. In a process of its own: a forked child holds copies of
//! every descriptor for a moment, and with them the locks that other tests look at.

#[path = "../common/mod.rs"]
mod common;

mod chains;
mod swapped;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{eventually, filter, host};
use rvmm::memory::image::{Chain, Error, Mode, Origin, PAGES_FILE, Written, write};
use rvmm::memory::{Memory, Pages, allocate};
use rvmm::sys::directory::Directory;
use rvmm::sys::frozen::{Frozen, PAGE};
use vm_memory::{Bytes, GuestAddress};

/// Numbers that look random and are the same each time (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

const RANGES: [(GuestAddress, u64); 2] = [(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 2 << 20)];

/// An image in a directory of its own.
struct Image(tempfile::TempDir, Written);

/// What images describe together, the top first.
fn chain<'a>(images: impl IntoIterator<Item = &'a Image>) -> Chain {
    let mut chain = Chain::default();
    for Image(directory, written) in images {
        chain.push(&Directory::open(directory.path()).unwrap(), &written.index, true).unwrap();
    }
    chain
}

fn capture(memory: &Memory, origin: &Origin, base: Option<&Chain>) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let frozen = Frozen::fork().unwrap();
    let written = write(&frozen, memory, origin, base, directory.path(), &mut |_, _| {}).unwrap();
    Image(directory, written)
}

fn contents(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; 6 << 20];
    memory.read_slice(&mut bytes[..4 << 20], GuestAddress(0)).unwrap();
    memory.read_slice(&mut bytes[4 << 20..], GuestAddress(1 << 32)).unwrap();
    bytes
}

fn scribble(memory: &Memory, random: &mut Random, pages: u64) {
    for _ in 0..pages {
        let page = random.below(1536);
        let address = if page < 1024 { page * 4096 } else { (1 << 32) + (page - 1024) * 4096 };
        let value = if random.below(4) == 0 { [0; 4096] } else { [random.below(256) as u8; 4096] };
        memory.write_slice(&value, GuestAddress(address)).unwrap();
    }
}

/// Does something on a thread to which the kernel tells of each page alone, as an older one does.
fn without_scan<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        filter::refuse_scan().unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Ten generations, each restored from the chain of all before, by mapping and by copying in turn.
#[test]
fn generations_come_back_exactly() {
    let mut random = Random(7);
    let mut memory = allocate(&RANGES, Pages::Transparent).unwrap();
    let mut origin = Origin::default();
    let mut images: Vec<Image> = Vec::new();
    for generation in 0..10 {
        scribble(&memory, &mut random, 300);
        let before = contents(&memory);
        let base = chain(images.iter().rev());
        let base = (!images.is_empty()).then_some(&base);
        images.push(capture(&memory, &origin, base));
        let chain = chain(images.iter().rev());
        chain.verify(|_| {}).unwrap();
        (memory, origin) = chain
            .map(
                &RANGES,
                if generation % 3 == 2 { &Mode::Copy } else { &Mode::Cow },
                Pages::Transparent,
                &mut |_, _| {},
            )
            .unwrap();
        assert!(contents(&memory) == before, "generation {generation}");
    }
    // A whole image of a machine that was restored ten times stands for itself.
    let before = contents(&memory);
    let whole = capture(&memory, &origin, None);
    let (memory, _) = chain([&whole]).map(&RANGES, &Mode::Cow, Pages::Transparent, &mut |_, _| {}).unwrap();
    assert!(contents(&memory) == before);
}

#[test]
fn a_difference_holds_exactly_what_differs() {
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    memory.write_slice(&[1; 8 * 4096], GuestAddress(4096)).unwrap();
    let base = capture(&memory, &Origin::default(), None);
    assert_eq!((base.1.data, base.1.zero), (8 * 4096, 0));
    memory.write_slice(&[0; 4096], GuestAddress(4096)).unwrap();
    memory.write_slice(&[1; 4096], GuestAddress(2 * 4096)).unwrap();
    memory.write_slice(&[2; 4096], GuestAddress(1 << 32)).unwrap();
    let top = capture(&memory, &Origin::default(), Some(&chain([&base])));
    assert_eq!((top.1.data, top.1.zero), (4096, 4096));
}

#[test]
fn damaged_pages_are_found() {
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    memory.write_slice(&[1; 8192], GuestAddress(3 << 20)).unwrap();
    memory.write_slice(&[1; 8192], GuestAddress((3 << 20) + (64 << 10))).unwrap();
    let image = capture(&memory, &Origin::default(), None);
    let pages = File::options().write(true).open(image.0.path().join(PAGES_FILE)).unwrap();
    // Also where there are none: a short hole is mapped with the pages on both sides.
    for (at, whole) in [(5000, 1), (8192, 0), ((64 << 10) - 1, 0), (300 << 10, 0)] {
        chain([&image]).verify(|_| {}).unwrap();
        pages.write_all_at(&[2], (3 << 20) + at).unwrap();
        let error = chain([&image]).verify(|_| {}).unwrap_err();
        assert!(matches!(error, Error::Pages { offset: 0x20_0000, .. }), "{at}: {error}");
        pages.write_all_at(&[whole], (3 << 20) + at).unwrap();
    }
}

/// A machine that has its memory from two images, of which the upper one has a few single pages, which are copied. The base is not
/// what the machine comes from: another image below, or another one in the place of the upper one, perhaps under the number (inode)
/// that the file system has given out again.
#[test]
fn a_base_that_only_looks_like_the_origin() {
    let machine = |value: u8| {
        let memory = allocate(&RANGES, Pages::Transparent).unwrap();
        memory.write_slice(&vec![value; 1 << 20], GuestAddress(0)).unwrap();
        memory
    };
    let fresh = Origin::default();
    let memory = machine(1);
    let lower = capture(&memory, &fresh, None);
    memory.write_slice(&[2; PAGE], GuestAddress(3 << 20)).unwrap();
    let upper = capture(&memory, &fresh, Some(&chain([&lower])));
    let origin = chain([&upper, &lower]);
    let (restored, origin) = origin.map(&RANGES, &Mode::Cow, Pages::Transparent, &mut |_, _| {}).unwrap();
    assert_eq!(origin.mapped, [(0, 256)]);
    let is_right = |base: &[&Image]| {
        let top = capture(&restored, &origin, Some(&chain(base.iter().copied())));
        let all = chain([&[&top], base].concat());
        let (memory, _) = all.map(&RANGES, &Mode::Copy, Pages::Transparent, &mut |_, _| {}).unwrap();
        assert!(contents(&memory) == contents(&restored));
        top.1.data
    };
    assert_eq!(is_right(&[&upper, &lower]), 0);

    let other = capture(&machine(3), &fresh, None);
    assert_eq!(is_right(&[&upper, &other]), 1 << 20);

    memory.write_slice(&[4; PAGE], GuestAddress(0)).unwrap();
    let later = capture(&memory, &fresh, Some(&chain([&lower])));
    let path = |image: &Image| image.0.path().join(PAGES_FILE);
    std::fs::write(path(&upper), std::fs::read(path(&later)).unwrap()).unwrap();
    let in_its_place = Image(upper.0, later.1);
    assert_eq!(is_right(&[&in_its_place, &lower]), PAGE as u64);
}

/// Ends a copy, as a host does that has no memory left.
fn kill(frozen: &Frozen) {
    // SAFETY: a plain call; the child has not been waited for, so the number is its own.
    unsafe { libc::kill(frozen.id() as libc::pid_t, libc::SIGKILL) };
    assert!(eventually(|| !host::runs(frozen.id())));
}

#[test]
fn a_host_without_memory_ends_the_copy_before_the_machine() {
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    memory.write_slice(&[1; 8 * 4096], GuestAddress(0)).unwrap();
    let frozen = Frozen::fork().unwrap();
    // What the kernel compares (proc_pid_oom_score(5)).
    let score = |pid: u32| -> u32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score")).unwrap().trim().parse().unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    write(&frozen, &memory, &Origin::default(), None, directory.path(), &mut |_, _| {}).unwrap();
    assert!(score(frozen.id()) > score(std::process::id()));
}

/// A host without memory ends a process and takes what it has before it is gone: no page is there, and it can be asked all the same.
#[test]
fn a_copy_that_the_host_has_ended_is_not_taken_for_an_empty_one() {
    let memory = allocate(&RANGES, Pages::Transparent).unwrap();
    memory.write_slice(&[1; 8192], GuestAddress(3 << 20)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let frozen = Frozen::fork().unwrap();
    let (pid, none) = (frozen.id() as libc::pid_t, 0usize);
    // SAFETY: plain calls; the child has not been waited for, so the number is its own. It stops on its way out until it is killed again.
    let taken = unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, none, libc::PTRACE_O_TRACEEXIT), 0);
        libc::kill(pid, libc::SIGKILL);
        let mut told = std::mem::zeroed::<libc::siginfo_t>();
        libc::waitid(libc::P_PID, frozen.id(), &mut told, libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT);
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        libc::syscall(libc::SYS_process_mrelease, process, 0)
    };
    assert_eq!(taken, 0, "{}", std::io::Error::last_os_error());
    let written = write(&frozen, &memory, &Origin::default(), None, directory.path(), &mut |_, _| {});
    assert!(matches!(&written, Err(Error::Memory(why)) if why.to_string().contains("ended")), "{written:?}");
}

#[test]
fn a_copy_is_read_after_it_was_found_whole() {
    let bytes = vec![7u8; 2 * PAGE];
    let frozen = Frozen::fork().unwrap();
    let mut copy = vec![0; bytes.len()];
    for _ in 0..2 {
        frozen.check().unwrap();
        frozen.read(bytes.as_ptr() as usize, &mut copy).unwrap();
        assert!(copy == bytes);
    }
    kill(&frozen);
    frozen.check().unwrap_err();
}

#[test]
fn the_copy_keeps_what_was_there() {
    let mut bytes = vec![7u8; 8 * PAGE];
    let frozen = Frozen::fork().unwrap();
    bytes.fill(9);
    let mut copy = vec![0; bytes.len()];
    frozen.read(bytes.as_ptr() as usize, &mut copy).unwrap();
    assert!(copy.iter().all(|&byte| byte == 7) && bytes.iter().all(|&byte| byte == 9));
    let start = bytes.as_ptr() as usize / PAGE * PAGE + PAGE;
    let own = frozen.own(start..start + 2 * PAGE).unwrap();
    assert_eq!((own.len(), &own[0]), (1, &(start..start + 2 * PAGE)));
}

#[test]
fn no_child_stays() {
    let frozen = Frozen::fork().unwrap();
    let proc = format!("/proc/{}", frozen.id());
    assert!(std::path::Path::new(&proc).exists());
    drop(frozen);
    assert!(!std::path::Path::new(&proc).exists());
}
