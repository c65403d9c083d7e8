//! Ranges in order.

use std::ops::Range;

/// Adds a range behind all others, or to the last one if it goes on where that ends.
pub fn append<T: PartialEq>(ranges: &mut Vec<Range<T>>, range: Range<T>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one() {
        let mut ranges = Vec::new();
        [1..3, 3..4, 6..7, 7..9].into_iter().for_each(|range| append(&mut ranges, range));
        assert_eq!(ranges, [1..4, 6..9]);
    }
}
