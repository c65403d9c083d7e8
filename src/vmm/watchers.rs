//! Clients that want to know how the machine ends.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;

use super::Outcome;
use super::request::Response;

/// As many as the API has clients. For one more, the one that has waited for the longest time is let go: it may be gone for long.
const MOST: usize = 32;

/// Those that wait.
#[derive(Default)]
pub struct Watchers(VecDeque<Sender<Response>>);

impl Watchers {
    /// One more.
    pub fn add(&mut self, watcher: Sender<Response>) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(watcher);
    }

    /// Tells all.
    pub fn tell(&mut self, outcome: &Outcome) {
        for watcher in self.0.drain(..) {
            let _ = watcher.send(Ok(serde_json::to_value(outcome).unwrap_or_default()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_latest_are_told_and_no_more_are_kept() {
        let (mut watchers, mut answers) = (Watchers::default(), Vec::new());
        for _ in 0..MOST + 2 {
            let (sender, answer) = channel();
            watchers.add(sender);
            answers.push(answer);
        }
        watchers.tell(&Outcome::Stopped);
        let told = |answer: &std::sync::mpsc::Receiver<Response>| answer.recv().ok()?.ok();
        assert!(answers[..2].iter().all(|answer| told(answer).is_none()));
        assert!(answers[2..].iter().all(|answer| told(answer).is_some_and(|end| end["cause"] == "stopped")));
    }
}
