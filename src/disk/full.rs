//! What disks do when the host has no space left, on a file system that is small for real.

use std::path::Path;
use std::process::Command;

use vm_memory::GuestAddress;

use super::model::{ask, wait};
use super::{Config, Disk, Done, Engine, Place, Request, is_full, open};
use crate::memory::{Buffers, Pages, allocate};

/// Set where the test runs for the second time, with the small file system mounted.
const MOUNTED: &str = "RVMM_TEST_SMALL_FILE_SYSTEM";

fn write(offset: u64, len: usize) -> Request {
    let memory = allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).unwrap();
    let mut buffers = Buffers::new(&std::sync::Arc::new(memory));
    buffers.push(GuestAddress(0), len).unwrap();
    buffers.write_at(0, &vec![7; len]);
    Request::Write { offset, buffers }
}

/// Writes until the host is full, frees what `ballast` takes, and tries again.
fn fill(disk: &mut dyn Disk, ballast: &Path) {
    let mut full = Vec::new();
    for i in 0..6 {
        disk.submit(i, write(i << 18, 1 << 18));
    }
    for Done { request, result, .. } in wait(disk, 6) {
        match result {
            Ok(()) => {}
            Err(error) if is_full(&error) => full.push(request),
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..6).contains(&full.len()), "{} of 6 found no room", full.len());
    std::fs::remove_file(ballast).unwrap();
    full.into_iter().for_each(|request| ask(disk, request).unwrap());
    let memory = std::sync::Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).unwrap());
    assert!(super::model::read(disk, &memory, 0, 6 << 18).iter().all(|&byte| byte == 7));
    ask(disk, Request::Flush).unwrap();
}

/// An overlay without a name whose file, which is made for the first write, finds no room.
fn crowd(path: &Path, engine: Option<Engine>) {
    let directory = path.parent().unwrap();
    let overlay = Some(Place::Nameless(directory.into()));
    let mut disk = open(&Config { engine, overlay, ..Config::new(path) }).unwrap();
    let files = (0..).map(|number| directory.join(format!("file-{number}")));
    let files: Vec<_> = files.take_while(|file| std::fs::File::create(file).is_ok()).collect();
    disk.submit(0, write(0, 4096));
    let Some(Done { request, result: Err(error), .. }) = wait(disk.as_mut(), 1).pop() else {
        panic!("there is room for its file");
    };
    assert!(is_full(&error), "{error}");
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    ask(disk.as_mut(), request).unwrap();
    ask(disk.as_mut(), Request::Flush).unwrap();
}

#[test]
fn requests_come_back_and_can_be_tried_again() {
    if let Some(directory) = std::env::var_os(MOUNTED) {
        let directory = Path::new(&directory);
        let (path, ballast) = (directory.join("disk"), directory.join("ballast"));
        let places =
            [None, Some(Place::Nameless(directory.into())), Some(Place::File(directory.join("overlay")))];
        for (engine, overlay) in
            [Some(Engine::Sync), None].into_iter().flat_map(|e| places.clone().map(|p| (e, p)))
        {
            println!("{engine:?} {overlay:?}");
            std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
            std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
            fill(open(&Config { engine, overlay, ..Config::new(&path) }).unwrap().as_mut(), &ballast);
            let _ = std::fs::remove_file(directory.join("overlay"));
            crowd(&path, engine);
        }
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let script = r#"mount -t tmpfs -o size=2m,nr_inodes=16 none "$0" || exit 77; exec "$@""#;
    let run = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "disk::full::requests_come_back_and_can_be_tried_again"])
        .env(MOUNTED, directory.path())
        .output();
    match run {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}", String::from_utf8_lossy(&output.stdout))
        }
        _ => crate::testing::skip("no file system can be mounted in a user namespace here"),
    }
}
