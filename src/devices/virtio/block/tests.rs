//! The block device, driven through its registers and rings.

mod scripted;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::*;
use crate::devices::virtio::mock::{self, Driver, hostile};
use crate::disk::{Engine, Geometry, SECTOR};
use crate::snapshot::Persist;

const SIZE: u64 = 1 << 20;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_DISK: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    file
}

fn config(file: &NamedTempFile) -> Config {
    Config { path_on_host: file.path().into(), ..Config::default() }
}

fn open(config: &Config) -> Box<dyn VirtioDevice> {
    crate::devices::virtio::Config::open(config, &mock::context()).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Asks and returns the status; the data is checked to be as long as it should be.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let reply = driver.request(0, &[&header(kind, sector), data], 1);
    assert_eq!(reply.len, 1);
    reply.bytes[0]
}

fn read(driver: &mut Driver, sector: u64, len: usize) -> Result<Vec<u8>, u8> {
    let mut reply = driver.request(0, &[&header(IN, sector)], len + 1);
    match reply.bytes.pop() {
        Some(0) => {
            assert_eq!(reply.len, len as u32 + 1);
            Ok(reply.bytes)
        }
        status => Err(status.unwrap()),
    }
}

fn works(driver: &mut Driver) {
    let data: Vec<u8> = (0..4096).map(|i| (i * 7) as u8).collect();
    assert_eq!(ask(driver, OUT, 8, &data), 0);
    assert_eq!(ask(driver, FLUSH_DISK, 0, &[]), 0);
    assert_eq!(read(driver, 8, 4096).unwrap(), data);
    assert_eq!(ask(driver, WRITE_ZEROES, 0, &segment(8, 1, 1)), 0);
    assert_eq!(read(driver, 8, 512).unwrap(), [0; 512]);
}

#[test]
fn reads_and_writes() {
    let file = image();
    let mut driver = Driver::started(open(&config(&file)));
    works(&mut driver);
    assert!(driver.interrupted());
    let mut on_host = [0; 512];
    file.as_file().read_exact_at(&mut on_host, 9 * SECTOR).unwrap();
    assert_eq!(on_host[..4], [0, 7, 14, 21]);
    // Discards are hints: the answer matters, not the bytes.
    assert_eq!(ask(&mut driver, DISCARD, 0, &[segment(8, 8, 0), segment(100, 0, 0)].concat()), 0);
    // Empty reads and writes are fine anywhere on the disk.
    assert_eq!(ask(&mut driver, OUT, SIZE / SECTOR, &[]), 0);
    assert_eq!(read(&mut driver, SIZE / SECTOR, 0), Ok(vec![]));
}

#[test]
fn refuses_what_is_not_on_the_disk() {
    let file = image();
    let mut driver = Driver::started(open(&config(&file)));
    let (end, over) = (SIZE / SECTOR, u64::MAX / SECTOR + 1);
    for sector in [end, end - 7, over, over - 1, u64::MAX, 1 << 63] {
        assert_eq!(read(&mut driver, sector, 4096), Err(1), "read {sector}");
        assert_eq!(ask(&mut driver, OUT, sector, &[1; 4096]), 1, "write {sector}");
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(ask(&mut driver, kind, 0, &segment(sector, 8, 0)), 1, "{kind} {sector}");
        }
    }
    assert_eq!(read(&mut driver, 0, 511), Err(1));
    assert_eq!(ask(&mut driver, OUT, 0, &[1; 513]), 1);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(ask(&mut driver, kind, 0, &[]), 1);
        assert_eq!(ask(&mut driver, kind, 0, &[0; 15]), 1);
        assert_eq!(ask(&mut driver, kind, 0, &[0; 16 * 33]), 1);
        assert_eq!(ask(&mut driver, kind, 0, &segment(0, u32::MAX, 0)), 1);
        assert_eq!(ask(&mut driver, kind, 0, &segment(0, 8, 2)), 2);
    }
    assert_eq!(ask(&mut driver, DISCARD, 0, &segment(0, 8, 1)), 2);
    for kind in [2, 3, 5, 10, 14, 15, 16, u32::MAX] {
        assert_eq!(ask(&mut driver, kind, 0, &[]), 2, "{kind}");
    }
    let mut bytes = vec![0; SIZE as usize];
    file.as_file().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0), "a refused request wrote something");
}

#[test]
fn needs_a_header_and_a_status() {
    let file = image();
    for (readable, writable) in [(&[0; 15][..], 512), (&[0; 16], 0), (&[], 1)] {
        let mut driver = Driver::started(open(&config(&file)));
        assert_eq!(driver.try_request(0, &[readable], writable), None);
        assert!(driver.needs_reset());
        driver.start(u64::MAX);
        works(&mut driver);
        drop(driver);
    }
}

#[test]
fn status_is_the_last_byte_however_the_chain_is_cut() {
    let file = image();
    file.as_file().write_all_at(&[7; 1024], 0).unwrap();
    let mut driver = Driver::started(open(&config(&file)));
    let header = header(IN, 0);
    let (_, places) = driver.submit(0, &[&header[..5], &header[5..]], &[100, 1, 922, 2]);
    while driver.used(0).is_none() {
        driver.wait(Duration::from_millis(10));
    }
    let mut bytes = Vec::new();
    for (address, len) in places {
        let mut part = vec![0xee; len];
        vm_memory::Bytes::read_slice(driver.memory.as_ref(), &mut part, vm_memory::GuestAddress(address)).unwrap();
        bytes.extend(part);
    }
    assert_eq!(bytes, [&[7; 1024][..], &[0]].concat());
}

#[test]
fn tells_what_it_is() {
    let file = image();
    let mut driver = Driver::started(open(&Config { drive_id: "a-name-that-is-longer-than-20".into(), ..config(&file) }));
    let reply = driver.request(0, &[&header(GET_ID, 0)], 21);
    assert_eq!((reply.len, &reply.bytes[..]), (21, &b"a-name-that-is-longe\0"[..]));
    let space = driver.config(0, 60);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), SIZE / SECTOR);
    let block = file.as_file().metadata().map(|m| std::os::unix::fs::MetadataExt::blksize(&m)).unwrap() as u32;
    let expected = [
        (8, 0),
        (12, 254),
        (16, 2 | 16 << 16 | 63 << 24),
        (20, 512),
        (24, (block / 512).ilog2() | (block / 512) << 16),
        (28, 0),
        (32, 1 << 16 | 1),
        (36, 1 << 22),
        (40, 32),
        (44, block / 512),
        (48, 1 << 17),
        (52, 32),
        (56, 1),
    ];
    for (at, value) in expected {
        assert_eq!(word(at), value, "at {at}");
    }
    assert_eq!(driver.config(60, 8), [0; 8]);
}

#[test]
fn read_only_disks_stay_as_they_are() {
    let file = image();
    let config = Config { is_read_only: true, ..config(&file) };
    let mut driver = Driver::started(open(&config));
    assert_eq!(driver.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(ask(&mut driver, OUT, 0, &[1; 512]), 1);
    assert_eq!(ask(&mut driver, DISCARD, 0, &segment(0, 8, 0)), 1);
    assert_eq!(ask(&mut driver, WRITE_ZEROES, 0, &segment(0, 8, 0)), 1);
    assert_eq!(ask(&mut driver, FLUSH_DISK, 0, &[]), 0);
    assert_eq!(read(&mut driver, 0, 512).unwrap(), [0; 512]);
    // Two machines may read the same disk.
    open(&config);
}

#[test]
fn survives_a_hostile_driver() {
    for engine in [Engine::Sync, Engine::Uring] {
        let file = image();
        let config = Config { io_engine: Some(engine), ..config(&file) };
        hostile::suite(move || open(&config), works);
    }
}

#[test]
fn an_edge_tells_of_every_completion_before_and_after_a_freeze() {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    let file = image();
    let mut driver = Driver::started(open(&config(&file)));
    let events = driver.function.lock().unwrap().device().events();
    let epoll = Epoll::new().unwrap();
    let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll.ctl(ControlOperation::Add, events[0], edge).unwrap();
    for round in 0..200 {
        if round == 100 {
            let mut function = driver.function.lock().unwrap();
            function.freeze();
            function.freeze_contents().unwrap().unwrap();
            function.thaw();
            assert_eq!(function.device().events(), events);
        }
        // Flushes always complete later, after a freeze in the new layer.
        let write = header(OUT, round);
        driver.submit(0, &[&write, &[round as u8; 512]], &[1]);
        driver.submit(0, &[&header(FLUSH_DISK, 0)], &[1]);
        let mut left = 2;
        while left > 0 {
            left -= std::iter::from_fn(|| driver.used(0)).count();
            if left > 0 {
                let found = loop {
                    match epoll.wait(5000, &mut [EpollEvent::default()]) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        other => break other.unwrap(),
                    }
                };
                assert_eq!(found, 1, "round {round}: nothing tells of the rest");
                driver.function.lock().unwrap().ready();
            }
        }
    }
}

#[test]
fn loads_only_onto_the_same_disk() {
    let file = image();
    let device = open(&config(&file));
    let saved = device.save();
    drop(device);
    open(&config(&file)).load(&saved).unwrap();
    file.as_file().set_len(2 * SIZE).unwrap();
    let error = open(&config(&file)).load(&saved).unwrap_err().to_string();
    assert_eq!(
        error,
        "The guest cannot go on with disk vda: it had 1048576 bytes and has 2097152 now"
    );
}
