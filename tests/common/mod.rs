//! What the tests with whole machines share: starting rvmm, watching what it says, knowing how it ended.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod bare;
pub mod filter;
pub mod host;
pub mod linux;
pub mod machine;
pub mod noise;
pub mod pty;
pub mod stream;
pub mod swap;
pub mod vcpu;
pub mod world;

use std::io::Write;
use std::time::{Duration, Instant};

/// How long anything may take that has no reason to take long: only a machine that hangs reaches it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Says that a test is skipped, past libtest's capture of standard error. `tests/all` counts these lines.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    // One write: lines of several threads do not mix.
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes());
}

/// Skips the test unless the host has what it needs: `need!(host::kvm())`.
#[macro_export]
macro_rules! need {
    ($($condition:expr),+) => {
        $(if let Err(reason) = $condition {
            return $crate::common::skip(&reason);
        })+
    };
}

/// Waits until `condition` holds. False if it did not in [`PATIENCE`].
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        if condition() {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        // What is waited for needs the processor more than the question does.
        std::thread::sleep(Duration::from_millis(2).max(asked.elapsed() * 4));
    }
}
