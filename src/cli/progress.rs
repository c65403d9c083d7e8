//! How far long work is, in one line on the terminal.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Common;
use crate::image::Step;
use crate::sys::terminal;

/// Work that takes less is not worth a word.
const SHORT: Duration = Duration::from_millis(300);
const BETWEEN: Duration = Duration::from_millis(100);

/// The line.
#[derive(Default)]
pub struct Bar(Mutex<State>);

#[derive(Default)]
struct State {
    start: Option<Instant>,
    last: Option<Instant>,
    shown: bool,
}

impl Bar {
    /// The line, if somebody sees it.
    pub fn new(common: &Common) -> Option<Self> {
        let seen = !common.json && terminal::is_terminal(io::stderr().as_fd());
        seen.then(Bar::default)
    }

    /// Shows how far the work is, now and then.
    pub fn show(&self, step: &Step) {
        self.say(|| line(step));
    }

    /// Shows a line in place of the last one, now and then.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let Ok(mut state) = self.0.lock() else { return };
        let now = Instant::now();
        let start = *state.start.get_or_insert(now);
        if now - start < SHORT || state.last.is_some_and(|last| now - last < BETWEEN) {
            return;
        }
        (state.last, state.shown) = (Some(now), true);
        let _ = write!(io::stderr(), "\r\x1b[K{}", line());
    }

    /// Takes the line away, before something else is said there.
    pub fn clear(&self) {
        if self.0.lock().is_ok_and(|mut state| std::mem::take(&mut state.shown)) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(step: &Step) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    match step.total.filter(|&total| total > 0) {
        Some(total) => {
            let done = step.done.min(total);
            format!("{} {} of {}, {}%", step.doing, mib(done), mib(total), done * 100 / total)
        }
        None => format!("{} {}", step.doing, mib(step.done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_how_far() {
        let step = |total| Step { doing: "packing", done: 3 << 20, total };
        assert_eq!(line(&step(Some(6 << 20))), "packing 3.0 MiB of 6.0 MiB, 50%");
        assert_eq!(line(&step(None)), "packing 3.0 MiB");
        assert_eq!(line(&step(Some(1))), "packing 0.0 MiB of 0.0 MiB, 100%");
    }
}
