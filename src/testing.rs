//! What many tests need: numbers that look random and are the same in every run, limits of time, a word about tests that cannot run.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take that has no reason to take long: only what hangs reaches it, however busy the host is.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says that the test cannot run here, past libtest's capture of standard error. `tests/all` counts these lines.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("test"));
    // One write: lines of several threads do not mix.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Runs `qemu-img` with these words in a directory, to its good end. A child of another test may hold a lock of this process until
/// it comes to its own program: that is waited for.
pub fn qemu_img(directory: &Path, words: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let output = Command::new("qemu-img").args(words.split(' ')).current_dir(directory).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return;
        }
        assert!(error.contains(" lock") && Instant::now() < end, "{words}: {error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A generator of numbers (splitmix64), good enough to find bugs with.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Runs `test` and fails if it takes longer than `limit`: for tests whose failure is an endless loop.
pub fn within(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = sender.send(());
    });
    match receiver.recv_timeout(limit) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("still running after {limit:?}"),
        // Done, or dropped by a panic that `join` passes on.
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}
