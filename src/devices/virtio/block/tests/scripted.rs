//! The block device over a disk that does what a test wants.

use std::sync::{Arc, Mutex};

use super::*;

type Shared<T> = Arc<Mutex<T>>;

/// What a [`Scripted`] disk was asked, and what it shall answer.
#[derive(Default)]
struct Script {
    asked: Vec<String>,
    /// Hold requests back until told otherwise.
    hold: bool,
    /// Answer with this error.
    error: Option<i32>,
}

/// A disk of zeroes that answers as a test wants, in reverse order.
struct Scripted {
    geometry: Geometry,
    script: Shared<Script>,
    waiting: Vec<(u64, Request)>,
}

fn scripted(cache: Cache) -> (Driver, Shared<Script>, Shared<Vec<Notice>>) {
    let script = Arc::new(Mutex::new(Script::default()));
    let geometry = Geometry { size: SIZE, physical_block: 512, read_only: false, discard: false };
    let disk = Scripted { geometry, script: script.clone(), waiting: Vec::new() };
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = notices.clone();
    let notifier = Notifier::new(move |notice| told.lock().unwrap().push(notice));
    let block = Block::new(Box::new(disk), "vdx".into(), "s", cache, notifier).unwrap();
    (Driver::started(Box::new(block)), script, notices)
}

impl Disk for Scripted {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        let word = match request {
            Request::Read { offset, .. } => format!("read {offset}"),
            Request::Write { offset, .. } => format!("write {offset}"),
            Request::Flush => "flush".into(),
            Request::Discard { offset, .. } => format!("discard {offset}"),
            Request::WriteZeroes { offset, .. } => format!("zero {offset}"),
        };
        self.script.lock().unwrap().asked.push(word);
        self.waiting.push((tag, request));
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        if !self.script.lock().unwrap().hold {
            self.drain(done);
        }
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        let error = self.script.lock().unwrap().error;
        for (tag, request) in self.waiting.drain(..).rev() {
            let result = error.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)));
            done.push(Done { tag, request, result });
        }
    }
}

#[test]
fn writes_reach_the_disk_as_the_cache_promises() {
    // (cache, features, what the driver writes to writeback, what the disk sees of a write and a flush)
    let all = u64::MAX;
    let cases = [
        (Cache::Writeback, all, None, "write 0, flush"),
        (Cache::Writeback, all, Some(0), "write 0, flush, flush"),
        (Cache::Writeback, all & !FLUSH & !CONFIG_WCE, None, "write 0, flush, flush"),
        (Cache::Writeback, all & !FLUSH, None, "write 0, flush, flush"),
        (Cache::Writeback, all & !CONFIG_WCE, None, "write 0, flush"),
        (Cache::Writethrough, all, None, "write 0, flush, flush"),
        (Cache::Writethrough, all, Some(1), "write 0, flush"),
        (Cache::Unsafe, all, None, "write 0"),
        (Cache::Unsafe, all, Some(0), "write 0"),
    ];
    for (cache, features, written, expected) in cases {
        let (mut driver, script, _) = scripted(cache);
        driver.start(features);
        if let Some(value) = written {
            crate::bus::BusDevice::write(&driver.registers, 0x100 + 32, &[value]);
            assert_eq!(driver.config(32, 1), [value]);
        }
        assert_eq!(ask(&mut driver, OUT, 0, &[1; 512]), 0);
        assert_eq!(ask(&mut driver, FLUSH_DISK, 0, &[]), 0);
        assert_eq!(script.lock().unwrap().asked.join(", "), expected, "{cache:?} {features:#x} {written:?}");
    }
}

#[test]
fn many_requests_end_in_any_order() {
    let (mut driver, script, _) = scripted(Cache::Writeback);
    script.lock().unwrap().hold = true;
    let heads: Vec<_> = (0..20).map(|i| driver.submit(0, &[&header(IN, i)], &[512, 1]).0).collect();
    assert_eq!(driver.used(0), None);
    script.lock().unwrap().hold = false;
    driver.kick(0);
    let back: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|used| (used.head, used.len)).collect();
    assert_eq!(back, heads.iter().rev().map(|&head| (head, 513)).collect::<Vec<_>>());
}

#[test]
fn waits_when_the_host_is_full() {
    let (mut driver, script, notices) = scripted(Cache::Writeback);
    script.lock().unwrap().error = Some(libc::ENOSPC);
    for sector in 0..3 {
        driver.submit(0, &[&header(OUT, sector), &[1; 512]], &[1]);
    }
    assert_eq!(driver.used(0), None);
    let reason = "disk vdx: no space left on the host; free some and resume".to_string();
    assert_eq!(*notices.lock().unwrap(), [Notice::Stalled { reason: reason.clone() }]);
    // Resumed too early, and then in time.
    driver.function.lock().unwrap().freeze();
    driver.function.lock().unwrap().thaw();
    assert_eq!(notices.lock().unwrap().len(), 2);
    script.lock().unwrap().error = None;
    driver.function.lock().unwrap().freeze();
    driver.function.lock().unwrap().thaw();
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 3);
    assert_eq!(notices.lock().unwrap().len(), 2);
}

#[test]
fn what_waited_for_space_is_done_after_a_restore() {
    let (mut driver, script, _) = scripted(Cache::Writeback);
    script.lock().unwrap().error = Some(libc::ENOSPC);
    let head = driver.submit(0, &[&header(OUT, 3), &[1; 512]], &[1]).0;
    driver.function.lock().unwrap().freeze();
    let saved = driver.function.lock().unwrap().save();
    // The same guest memory around another device.
    let (fresh, script, notices) = scripted(Cache::Writeback);
    let mut driver = driver.restored(fresh, &saved);
    assert_eq!(driver.used(0).map(|used| used.head), Some(head));
    assert_eq!(script.lock().unwrap().asked, ["write 1536"]);
    assert!(notices.lock().unwrap().is_empty());
    assert_eq!(ask(&mut driver, OUT, 0, &[1; 512]), 0);
}

#[test]
fn host_errors_are_the_guests_errors() {
    let (mut driver, script, notices) = scripted(Cache::Writethrough);
    script.lock().unwrap().error = Some(libc::EIO);
    assert_eq!(ask(&mut driver, OUT, 0, &[1; 512]), 1);
    assert_eq!(read(&mut driver, 0, 512), Err(1));
    script.lock().unwrap().error = None;
    assert_eq!(ask(&mut driver, OUT, 0, &[1; 512]), 0);
    assert!(notices.lock().unwrap().is_empty());
}

#[test]
fn freezing_finishes_what_is_under_way() {
    let (mut driver, script, _) = scripted(Cache::Writethrough);
    script.lock().unwrap().hold = true;
    driver.submit(0, &[&header(OUT, 0), &[1; 512]], &[1]);
    driver.function.lock().unwrap().freeze();
    assert_eq!(script.lock().unwrap().asked, ["write 0", "flush"]);
    assert!(driver.used(0).is_some());
}

#[test]
fn resets_with_requests_under_way() {
    let (mut driver, script, _) = scripted(Cache::Writeback);
    script.lock().unwrap().hold = true;
    driver.submit(0, &[&header(OUT, 0), &[1; 512]], &[1]);
    driver.start(u64::MAX);
    script.lock().unwrap().hold = false;
    assert_eq!(ask(&mut driver, OUT, 1, &[1; 512]), 0);
    assert_eq!(driver.used(0), None);
}
