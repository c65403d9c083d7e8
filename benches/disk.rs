//! What a 4 KiB random read or write costs through the `Disk` trait, from images of several layers as well, and what
//! opening a disk costs.
//!
//! `cargo bench --bench disk [-- DIRECTORY [ROWS]]` makes 4 GiB of files there (default: the system's temporary directory)
//! and measures all rows, or those with ROWS in their name. Every row is the median of five runs that take turns with the other rows.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rvmm::disk::extents::{self, Run};
use rvmm::disk::{self, Disk, Done, Engine, Layers, Place, Request};
use rvmm::memory::{Buffers, Memory, Pages, allocate};
use tempfile::NamedTempFile;
use vm_memory::GuestAddress;

const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 4096;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let directory: PathBuf = arguments.first().map_or_else(std::env::temp_dir, Into::into);
    let path = tempfile::Builder::new().prefix("disk-bench").tempfile_in(&directory).expect("make a file");
    let content = vec![0x5a; 1 << 20];
    for _ in 0..SIZE >> 20 {
        std::io::Write::write_all(&mut path.as_file(), &content).expect("fill the file");
    }
    path.as_file().sync_all().expect("sync the file");
    let memory = Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).expect("map memory"));

    let mut rows: Vec<(String, Box<dyn FnMut() -> f64 + '_>)> = Vec::new();
    let overlay = |directory: &Path| Some(Place::Nameless(directory.into()));
    for (name, engine, overlay) in [
        ("sync", Engine::Sync, None),
        ("io_uring", Engine::Uring, None),
        ("overlay, sync", Engine::Sync, overlay(&directory)),
        ("overlay, io_uring", Engine::Uring, overlay(&directory)),
    ] {
        let config = disk::Config { engine: Some(engine), overlay, ..disk::Config::new(path.path()) };
        rows.push((format!("{name}: open and close, us"), {
            let config = config.clone();
            Box::new(move || per(200, || drop(disk::open(&config).expect("open"))))
        }));
        for depth in [1, 32] {
            for (what, write, cold) in [
                ("read, in the page cache", false, false),
                ("write", true, false),
                ("read, cache dropped", false, true),
            ] {
                let (config, memory, path) = (config.clone(), Arc::clone(&memory), path.path());
                let run = move || {
                    prepare(&[path.into()], cold);
                    random_io(disk::open(&config).expect("open"), &memory, depth, write)
                };
                rows.push((format!("{name}: 4 KiB random {what}, depth {depth}, us"), Box::new(run)));
            }
        }
    }
    for count in [1, 8, 32] {
        let (map, files) = layers(&directory, count);
        for (what, cold) in [("read, in the page cache", false), ("read, cache dropped", true)] {
            let (map, memory) = (Arc::clone(&map), Arc::clone(&memory));
            let paths: Vec<PathBuf> = files.iter().map(|file| file.path().into()).collect();
            let files = Arc::clone(&files);
            let run = move || {
                prepare(&paths, cold);
                let all = std::iter::once(&*map).chain(files.iter());
                let all: Vec<_> = all.map(|file| Arc::new(file.reopen().expect("open"))).collect();
                let disk = Layers::open(map.path(), &all, SIZE).expect("open");
                random_io(Box::new(disk), &memory, 1, false)
            };
            rows.push((format!("image of {count} layers: 4 KiB random {what}, us"), Box::new(run)));
        }
    }
    rows.retain(|(name, _)| arguments.get(1).is_none_or(|wanted| name.contains(wanted)));
    let mut results = vec![Vec::new(); rows.len()];
    for _ in 0..5 {
        for ((_, run), results) in rows.iter_mut().zip(&mut results) {
            results.push(run());
        }
    }
    for ((name, _), results) in rows.iter().zip(&mut results) {
        results.sort_by(f64::total_cmp);
        println!("{name:<64} {:>9.2}   ({:.2} to {:.2})", results[2], results[0], results[4]);
    }
}

/// Microseconds per call.
fn per(calls: u32, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..calls).for_each(|_| call());
    start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// A disk in `count` layers, each of which has every `count`th piece of 64 KiB: their map, and the layers.
fn layers(directory: &Path, count: u64) -> (Arc<NamedTempFile>, Arc<Vec<NamedTempFile>>) {
    let make = || tempfile::Builder::new().prefix("disk-bench").tempfile_in(directory).expect("make a file");
    let files: Vec<NamedTempFile> = (0..count).map(|_| make()).collect();
    let (mut runs, piece) = (Vec::new(), vec![0x5a; 1 << 16]);
    for start in (0..SIZE / BLOCK).step_by(16) {
        let layer = start / 16 % count;
        files[layer as usize].as_file().write_all_at(&piece, start * BLOCK).expect("fill a layer");
        extents::append(&mut runs, Run { start, count: 16, layer: Some(layer as u16) });
    }
    for file in &files {
        file.as_file().set_len(SIZE).expect("make a layer as long as the disk");
        file.as_file().sync_all().expect("sync a layer");
    }
    let mut map = make();
    extents::write(&runs, files.len(), SIZE / BLOCK, &mut map).expect("write the map");
    (Arc::new(map), Arc::new(files))
}

/// Brings what files have into the page cache, or drops it from there.
fn prepare(paths: &[PathBuf], cold: bool) {
    let (mut piece, count) = (vec![0; 1 << 16], paths.len() as u64);
    for path in paths.iter().filter(|_| cold) {
        drop_cache(path);
    }
    let files = paths.iter().map(|path| std::fs::File::open(path).expect("open")).collect::<Vec<_>>();
    for start in (0..SIZE >> 16).filter(|_| !cold) {
        files[(start % count) as usize].read_exact_at(&mut piece, start << 16).expect("read");
    }
}

/// Microseconds per request with `depth` of them in flight.
fn random_io(mut disk: Box<dyn Disk>, memory: &Arc<Memory>, depth: u64, write: bool) -> f64 {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % (SIZE / BLOCK) * BLOCK
    };
    let mut submit = |disk: &mut dyn Disk, tag: u64| {
        let mut buffers = Buffers::new(memory);
        buffers.push(GuestAddress(tag * BLOCK), BLOCK as usize).expect("in memory");
        let offset = next();
        disk.submit(
            tag,
            if write { Request::Write { offset, buffers } } else { Request::Read { offset, buffers } },
        );
    };
    let (start, limit) = (Instant::now(), Duration::from_millis(500));
    let (mut finished, mut done) = (0u64, Vec::<Done>::new());
    (0..depth).for_each(|tag| submit(disk.as_mut(), tag));
    while start.elapsed() < limit {
        disk.finished(&mut done);
        if done.is_empty() {
            wait(disk.as_ref());
        }
        for Done { tag, result, .. } in done.drain(..) {
            result.expect("I/O");
            finished += 1;
            submit(disk.as_mut(), tag);
        }
    }
    let elapsed = start.elapsed().as_secs_f64() * 1e6;
    disk.drain(&mut done);
    elapsed / finished as f64
}

/// Sleeps until the disk has something, as an event loop does.
fn wait(disk: &dyn Disk) {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    thread_local!(static EPOLL: Epoll = Epoll::new().expect("epoll"));
    EPOLL.with(|epoll| {
        for fd in disk.events() {
            // Added anew each time: another disk may have had the number before.
            let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            let _ = epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0));
        }
        let _ = epoll.wait(1000, &mut [EpollEvent::default()]);
    });
}

fn drop_cache(path: &Path) {
    let file = std::fs::File::open(path).expect("open");
    // Dirty pages cannot be dropped.
    file.sync_all().expect("sync");
    // SAFETY: advice about a file that is open.
    unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED) };
}
