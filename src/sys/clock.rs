//! The clock that other processes can read, too (clock_gettime(2)).

use std::time::{Duration, Instant};

/// The time of the host's CLOCK_MONOTONIC at `instant`, which has passed.
pub fn monotonic(instant: Instant) -> Duration {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `now` is ours, and the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    now.saturating_sub(instant.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_is_less() {
        let first = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        let (first, second) = (monotonic(first), monotonic(Instant::now()));
        assert!(second - first >= Duration::from_millis(1), "{first:?} {second:?}");
    }
}
