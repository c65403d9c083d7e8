//! How a named machine ended: kept beside what it has written until it is started again or removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use log::warn;
use serde::{Deserialize, Serialize};

use crate::cli::exit;
use crate::image::rfc3339;
use crate::vmm::Outcome;

const NAME: &str = "ended.json";

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The exit status of the program that was the machine.
    pub status: u8,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Ended { status: exit::status(&outcome), outcome, at: None }
    }
}

impl Ended {
    /// What is known of the machine in `directory`: nothing of one that runs, was killed, or never ran.
    pub fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(NAME)).ok()?).ok()
    }

    /// Notes how the machine in `directory` has ended just now.
    pub fn note(directory: &Path, outcome: &Outcome) {
        let ended = Ended { at: Some(rfc3339(SystemTime::now())), ..Ended::from(outcome.clone()) };
        if let Err(error) = ended.write(directory) {
            warn!("how the machine ended is not kept in {}: {error}", directory.display());
        }
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let beside = directory.join(format!("{NAME}.new"));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, directory.join(NAME))
    }

    /// The machine in `directory` is about to run again.
    pub fn forget(directory: &Path) {
        let _ = fs::remove_file(directory.join(NAME));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let outcomes = [
            (Outcome::PowerOff(Some(3)), 3),
            (Outcome::PowerOff(None), 0),
            (Outcome::Reboot, 0),
            (Outcome::Stopped, 130),
            (Outcome::Panic, 127),
            (Outcome::Silent, 127),
            (Outcome::TripleFault, 128),
            (Outcome::Failed("KVM".into()), 126),
        ];
        for (outcome, status) in outcomes {
            Ended::note(directory.path(), &outcome);
            let read = Ended::read(directory.path()).unwrap();
            assert_eq!((read.status, read.outcome, read.at.is_some()), (status, outcome, true));
        }
        Ended::forget(directory.path());
        assert_eq!(Ended::read(directory.path()), None);
        fs::write(directory.path().join(NAME), "{").unwrap();
        assert_eq!(Ended::read(directory.path()), None);
    }
}
