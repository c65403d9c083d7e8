//! Raw disks with both engines.

use std::os::unix::fs::FileExt;

use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::disk::model::{Model, ask};
use crate::testing::Random;

const SIZE: usize = 3 << 20;
const ENGINES: [Option<Engine>; 2] = [Some(Engine::Sync), None];

fn image(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    file
}

fn open(file: &NamedTempFile, engine: Option<Engine>) -> Result<Raw, Error> {
    Raw::open(&Config { engine, ..Config::new(file.path()) })
}

#[test]
fn does_what_a_vector_does() {
    for engine in ENGINES {
        for seed in 0..4 {
            let content = Random(seed).bytes(SIZE);
            let file = image(&content);
            let mut model = Model::new(&content, seed);
            let mut disk = open(&file, engine).unwrap();
            // As if writes were slow, half of the time.
            disk.writes_by_ring = if seed % 2 == 0 { u32::MAX } else { 0 };
            model.play(&mut disk, 300);
            drop(disk);
            // The bytes are where they should be, and found again.
            model.compare_bytes(&std::fs::read(file.path()).unwrap());
            let read_only = Config { read_only: true, engine, ..Config::new(file.path()) };
            let mut disk = Raw::open(&read_only).unwrap();
            model.compare(&mut disk);
            model.play(&mut disk, 50);
        }
    }
}

#[test]
fn works_on_a_file_system_that_cannot_zero_ranges() {
    // tmpfs punches holes and nothing else.
    let Ok(directory) = TempDir::new_in("/dev/shm") else { return crate::testing::skip("no /dev/shm") };
    let path = directory.path().join("disk");
    for engine in ENGINES {
        std::fs::write(&path, vec![7; SIZE]).unwrap();
        let mut disk = Raw::open(&Config { engine, ..Config::new(&path) }).unwrap();
        Model::new(&[7; SIZE], 9).play(&mut disk, 300);
    }
}

#[test]
fn discards_give_space_back() {
    for engine in ENGINES {
        let file = image(&Random(1).bytes(SIZE));
        file.as_file().sync_all().unwrap();
        let mut disk = open(&file, engine).unwrap();
        let blocks = || file.as_file().metadata().unwrap().blocks();
        let before = blocks();
        ask(&mut disk, Request::Discard { offset: 0, len: SIZE as u64 / 2 }).unwrap();
        assert!(blocks() <= before / 2 + 16, "{} of {before}", blocks());
        ask(&mut disk, Request::WriteZeroes { offset: 0, len: SIZE as u64, unmap: true }).unwrap();
        assert!(blocks() <= 16, "{}", blocks());
        ask(&mut disk, Request::WriteZeroes { offset: 0, len: SIZE as u64, unmap: false }).unwrap();
        assert!(blocks() >= before - 16, "{} of {before}", blocks());
    }
}

#[test]
fn says_when_the_file_became_shorter() {
    for engine in ENGINES {
        let file = image(&[1; 8192]);
        let mut disk = open(&file, engine).unwrap();
        file.as_file().set_len(4096).unwrap();
        let memory =
            crate::memory::allocate(&[(vm_memory::GuestAddress(0), 8192)], Default::default()).unwrap();
        let mut buffers = Buffers::new(&Arc::new(memory));
        buffers.push(vm_memory::GuestAddress(0), 8192).unwrap();
        let error = ask(&mut disk, Request::Read { offset: 0, buffers }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(&[0; 4096]);
    let read_only = Config { read_only: true, ..Config::new(file.path()) };
    let writer = open(&file, None).unwrap();
    for config in [Config::new(file.path()), read_only.clone()] {
        let message = Raw::open(&config).err().unwrap().to_string();
        assert_eq!(
            message,
            format!(
                "Disk {} is in use by this process itself (another of its disks): stop it, or open the disk \
                 with `ro` or `overlay` on both sides",
                file.path().display()
            )
        );
    }
    drop(writer);
    let _reader = Raw::open(&read_only).unwrap();
    let _another = Raw::open(&read_only).unwrap();
    assert!(matches!(open(&file, None), Err(Error::Locked { .. })));
}

/// Another process that has the lock.
fn locked_by_another(file: &NamedTempFile) -> Option<std::process::Child> {
    // flock(1) takes another kind of lock, so a shell of our own kind is needed: Python speaks fcntl.
    let script = "import fcntl,struct,sys,time; f=open(sys.argv[1],'r+b'); \
                  fcntl.fcntl(f,37,struct.pack('hhqqi4x',1,0,0,0,0)); print('locked',flush=True); time.sleep(600)";
    let child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(file.path())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        crate::testing::skip("no python3");
        return None;
    };
    io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut String::new())
        .unwrap();
    Some(child)
}

#[test]
fn names_the_process_that_uses_the_disk() {
    let file = image(&[0; 4096]);
    let Some(mut child) = locked_by_another(&file) else { return };
    let message = open(&file, None).err().unwrap().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(message.contains(&format!("in use by process {} (python3", child.id())), "{message}");
}

#[test]
fn waits_for_a_process_that_is_about_to_let_go() {
    let file = image(&[0; 4096]);
    let Some(mut child) = locked_by_another(&file) else { return };
    let opening = std::thread::spawn(move || open(&file, None).map(drop));
    std::thread::sleep(Duration::from_millis(20));
    child.kill().unwrap();
    child.wait().unwrap();
    opening.join().unwrap().unwrap();
}

#[test]
fn says_what_is_wrong_with_a_path() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("odd"), [0; 1000]).unwrap();
    std::fs::write(path("empty"), []).unwrap();
    let cases = [
        (
            "missing",
            "Disk DIR/missing does not exist: create it, for example with `truncate -s 1G DIR/missing`",
        ),
        (
            "odd",
            "Disk DIR/odd has 1000 bytes, which is not a multiple of 512: enlarge it with `truncate -s 1024 DIR/odd`",
        ),
        ("empty", "Disk DIR/empty is empty: give it a size, for example with `truncate -s 1G DIR/empty`"),
        (".", "Disk DIR/. is a directory: a disk is a regular file or a block device"),
        ("/dev/null", "Disk /dev/null is a character device: a disk is a regular file or a block device"),
    ];
    for (name, expected) in cases {
        let message = Raw::open(&Config::new(path(name))).err().unwrap().to_string();
        assert_eq!(message, expected.replace("DIR", &directory.path().display().to_string()));
    }
}
