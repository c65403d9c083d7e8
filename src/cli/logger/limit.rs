//! How often one place in the program may say something: a guest can have some of them say the same again and again, and must
//! not fill the host's disk with it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines that a place may say in a row.
const BURST: u64 = 100;
/// The time in which it may say one more.
const REFILL: Duration = Duration::from_secs(10);

/// A place in the program: file and line.
pub type Place = (Option<&'static str>, Option<u32>);

/// What all places have said.
#[derive(Default)]
pub struct Limit(HashMap<Place, Said>);

struct Said {
    /// Lines that it may still say.
    left: u64,
    /// Until when `left` has been counted.
    counted: Instant,
    /// Lines that were left out since the last one.
    left_out: u64,
}

impl Limit {
    /// Whether `place` may say a line at `now`, and how many of its lines before were left out.
    pub fn admit(&mut self, place: Place, now: Instant) -> Option<u64> {
        let said = self.0.entry(place).or_insert(Said { left: BURST, counted: now, left_out: 0 });
        let more = now.saturating_duration_since(said.counted).as_secs() / REFILL.as_secs();
        if more > 0 {
            said.left = BURST.min(said.left + more);
            said.counted = now;
        }
        match said.left.checked_sub(1) {
            Some(left) => {
                said.left = left;
                Some(std::mem::take(&mut said.left_out))
            }
            None => {
                said.left_out += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_repeats_itself_is_heard_now_and_then() {
        let (mut limit, mut now) = (Limit::default(), Instant::now());
        let (here, there) = ((Some("a.rs"), Some(1)), (Some("a.rs"), Some(2)));
        let mut heard = |place, now| (0..1000).filter_map(|_| limit.admit(place, now)).collect::<Vec<_>>();
        assert_eq!(heard(here, now), [0; 100]);
        assert_eq!(heard(there, now), [0; 100]);
        now += REFILL - Duration::from_millis(1);
        assert!(heard(here, now).is_empty());
        now += Duration::from_millis(1);
        assert_eq!(heard(here, now), [1900]);
        now += 200 * REFILL;
        assert_eq!(heard(here, now)[..2], [999, 0]);
    }
}
