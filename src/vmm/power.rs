//! The power button, and a machine that cannot hear it yet.
//!
//! ```text
//!   wish ─┬─ it runs ───────────────────────────────────► button ─► time for the guest ─► the end, by force
//!         ├─ it stands still until it is saved ─► kept ──────┘ when it goes on
//!         └─ it is paused, or it is a second wish ──────────────────────────────────────► the end, by force
//! ```

use log::info;

use super::message::Message;
use super::request::{Request, RunState};
use super::{Outcome, Vmm};
use crate::devices::ged::Event;

impl Vmm {
    /// Whether a message is for a guest that hears it when its machine has been saved. A second wish that it shall end is not kept
    /// waiting.
    pub(super) fn is_for_later(&self, message: &Message) -> bool {
        let ends = |message: &Message| {
            matches!(
                message,
                Message::Terminate { force: false } | Message::Request(Request::Stop { force: false }, _)
            )
        };
        let is_first = || !self.deadline.is_set() && !self.later.iter().any(ends);
        let presses = matches!(message, Message::Request(Request::PowerButton, _));
        self.state == RunState::Saving && (presses || ends(message) && is_first())
    }

    /// The machine stands still from now on, until it is saved. Its guest's time does, too.
    pub(super) fn stand_still(&mut self) {
        (self.before, self.state) = (self.state, RunState::Saving);
        self.deadline.hold();
    }

    /// The machine goes on as it was before it stood still, and hears what was kept for it.
    pub(super) fn go_on(&mut self) -> Option<Outcome> {
        self.machine.retry();
        self.state = RunState::Paused;
        if self.before == RunState::Running {
            self.resume();
        }
        self.deadline.go_on();
        std::mem::take(&mut self.later).into_iter().find_map(|message| self.handle(message))
    }

    /// Asks the guest to switch itself off, and gives it some time. A machine that is paused cannot hear it, and a
    /// second wish is not kept waiting.
    pub(super) fn press_power_button(&mut self) -> Option<Outcome> {
        if self.state != RunState::Running || self.deadline.is_set() {
            return Some(Outcome::Stopped);
        }
        info!(
            "pressing the power button; the machine is stopped in {} s if the guest does not",
            self.grace.as_secs()
        );
        self.machine.platform.ged.raise(Event::PowerButton);
        self.deadline.set(self.grace);
        None
    }
}
