//! What a kernel writes to its console when it panics, whatever driver it has or lacks to tell of it.

/// Linux writes it before all else it has to say of a panic, and in every version. Its first letter comes in it once.
const TEXT: &[u8] = b"Kernel panic - not syncing";

/// How many bytes of output may lie between the text and a reset that belongs to it: registers, the stack and what other CPUs
/// write come to some KiB.
const REACH: usize = 64 << 10;

/// Looks for the text in a stream of output.
#[derive(Default)]
pub struct LastWords {
    /// How many bytes of the text have come, one behind the other.
    matched: usize,
    /// How many more bytes of output the text counts for.
    left: usize,
}

impl LastWords {
    /// The guest has written `bytes`.
    pub fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.left = self.left.saturating_sub(1);
            self.matched = match byte == TEXT[self.matched] {
                true => self.matched + 1,
                // Nothing but its first letter can begin the text anew.
                false => (byte == TEXT[0]).into(),
            };
            if self.matched == TEXT.len() {
                *self = LastWords { matched: 0, left: REACH };
            }
        }
    }

    /// Whether the last that was written is the end of a kernel.
    pub fn are_a_panic(&self) -> bool {
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(pieces: &[&str]) -> bool {
        let mut words = LastWords::default();
        pieces.iter().for_each(|piece| words.hear(piece.as_bytes()));
        words.are_a_panic()
    }

    #[test]
    fn the_text_is_found_wherever_it_is_cut() {
        let line = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n";
        for cut in 0..=line.len() {
            assert!(heard(&[&line[..cut], &line[cut..]]), "{cut}");
        }
        assert!(heard(&line.split("").collect::<Vec<_>>()), "byte by byte");
    }

    #[test]
    fn a_beginning_does_not_hide_the_text() {
        for before in ["K", "KK", "Kernel Kernel ", "Kernel panic - not syncin", "Kernel panic - not synK"] {
            assert!(heard(&[before, "Kernel panic - not syncing"]), "{before}");
        }
    }

    #[test]
    fn other_words_are_no_panic() {
        for other in ["", "Kernel panic", "Kernel panic - not syncinG", "ernel panic - not syncing", "panic"]
        {
            assert!(!heard(&[other]), "{other}");
        }
        assert!(!heard(&["Kernel panic -", "- not syncing"]));
    }

    #[test]
    fn it_counts_for_what_is_written_next_and_no_longer() {
        let mut words = LastWords::default();
        words.hear(TEXT);
        words.hear(&vec![b'K'; REACH - 1]);
        assert!(words.are_a_panic());
        words.hear(b"x");
        assert!(!words.are_a_panic());
        words.hear(TEXT);
        assert!(words.are_a_panic());
    }
}
