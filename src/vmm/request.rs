//! What can be asked of a running machine, by whomever: the API, the command line, the console's escape keys.
//!
//! ```text
//!         Describe, AwaitEnd  Save  Save, frozen  SaveDisk, StandOn  Pause  Resume  PowerButton  Stop
//!   running       x            x         x               x            x              x           x
//!   paused        x            x                         x                    x                   x
//!   saving        x                                                                    later     later, by force x
//! ```
//!
//! Later is when the machine goes on: the answer, too, comes then.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Tell what the machine is and does.
    Describe,
    /// Tell how the machine ends, when it does.
    AwaitEnd,
    /// Stop the vCPUs; the machine keeps everything.
    Pause,
    /// Let the vCPUs run again, and let devices that stalled try again.
    Resume,
    /// Press the power button: the guest is asked to shut down.
    PowerButton,
    /// Save the machine; it runs on meanwhile. The answer comes when the snapshot is written.
    Save(Save),
    /// Put what was written over the image that the machine stands on into files; it runs on meanwhile. The answer
    /// comes when they are durable.
    SaveDisk {
        /// The directory in which they are linked, on the file system of the store.
        target: PathBuf,
        /// Have the guest's agent, if there is one, freeze its file systems meanwhile.
        freeze: bool,
    },
    /// Have the image's disk stand on the layers of a later version, in which the overlays are that it has put on top since.
    StandOn {
        /// The map of the layers and the layers, the lowest first.
        base: Vec<PathBuf>,
        /// How many overlays are in them: not done if there are others below the one that is written.
        above: usize,
    },
    /// End the machine: with the power button first and by force after a time, or by force at once.
    Stop {
        /// At once.
        force: bool,
    },
}

/// Where a machine is saved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Save {
    /// The directory to be made, absolute.
    pub target: PathBuf,
    /// An earlier snapshot: only what differs from it is written.
    pub base: Option<PathBuf>,
    /// End the machine when it is saved.
    pub stop: bool,
    /// Have the guest's agent freeze its file systems meanwhile.
    pub freeze: Freeze,
}

/// Whether a guest's file systems hold still while its machine is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freeze {
    /// They go on.
    #[default]
    No,
    /// If there is somebody in the guest who has them do so.
    IfPossible,
    /// Or the machine is not saved.
    Must,
}

/// What a machine does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped.
    Paused,
    /// It stands still until its snapshot is written.
    Saving,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Saving => "being saved",
        })
    }
}

/// The answer.
pub type Response = Result<Value, Error>;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in this state.
    #[error("The machine is {state}: it cannot {request}")]
    State {
        /// What was asked for, as a verb.
        request: &'static str,
        /// What the machine does.
        state: RunState,
    },
    /// A snapshot could not be taken or written.
    #[error("Cannot save the machine: {0}")]
    Save(String),
    /// The guest's file systems could not be frozen.
    #[error("Cannot freeze the guest's file systems: {0}")]
    Freeze(String),
    /// The machine has ended meanwhile.
    #[error("The machine has ended")]
    Ended,
}

impl Error {
    /// A snapshot could not be taken or written, for this reason.
    pub(super) fn save(error: &dyn std::error::Error) -> Self {
        Error::Save(chain(error))
    }
}

impl Request {
    /// Whether a machine in `state` takes this request: the one table.
    pub fn check(&self, state: RunState) -> Result<(), Error> {
        let allowed = match self {
            Request::Describe | Request::AwaitEnd | Request::Stop { .. } => true,
            Request::Save(Save { freeze: Freeze::Must, .. }) => state == RunState::Running,
            Request::Save(_) | Request::SaveDisk { .. } | Request::StandOn { .. } => {
                state != RunState::Saving
            }
            Request::Pause | Request::PowerButton => state == RunState::Running,
            Request::Resume => state == RunState::Paused,
        };
        match allowed {
            true => Ok(()),
            false => Err(Error::State { request: self.verb(), state }),
        }
    }

    fn verb(&self) -> &'static str {
        match self {
            Request::Describe => "be described",
            Request::AwaitEnd => "tell how it ends",
            Request::Pause => "be paused",
            Request::Resume => "be resumed",
            Request::PowerButton => "take the power button",
            Request::Save(Save { freeze: Freeze::Must, .. }) => "freeze its file systems",
            Request::Save(_) | Request::SaveDisk { .. } => "be saved",
            Request::StandOn { .. } => "be put on other layers",
            Request::Stop { .. } => "be stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stands_still_to_be_saved_takes_nothing_else() {
        let save = |freeze| Request::Save(Save { target: "/one".into(), base: None, stop: false, freeze });
        let saves = [Freeze::No, Freeze::IfPossible, Freeze::Must].map(save);
        let others = [Request::Pause, Request::Resume, Request::PowerButton].into_iter().chain(saves);
        for request in others.chain([Request::SaveDisk { target: "/two".into(), freeze: false }]) {
            let error = request.check(RunState::Saving).unwrap_err().to_string();
            assert!(error.starts_with("The machine is being saved: it cannot "), "{error}");
        }
        for request in [Request::Describe, Request::Stop { force: false }, Request::Stop { force: true }] {
            request.check(RunState::Saving).unwrap();
        }
    }
}
