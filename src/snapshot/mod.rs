//! Saved state: every part of a machine that has state gives it out as plain data and takes it back.

pub mod bundle;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The state of one part of a machine, with the name and version of its form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What kind of part this is, for example `virtio-block`.
    pub kind: String,
    /// Version of the form of `data`; a part refuses versions that it does not know.
    pub version: u32,
    /// The state itself.
    pub data: serde_json::Value,
}

/// Why saved state was refused. Saved state is hostile input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state belongs to another kind of part.
    #[error("Saved state is of a {found}, not of a {wanted}")]
    Kind {
        /// What was expected.
        wanted: &'static str,
        /// What was found.
        found: String,
    },
    /// The form is newer or older than this build knows.
    #[error("Saved state of {kind} has version {found}, this rvmm knows {known}")]
    Version {
        /// The part.
        kind: &'static str,
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// The data does not have the form that its kind and version promise.
    #[error("Saved state of {kind} is damaged")]
    Form {
        /// The part.
        kind: &'static str,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// The host does not offer what the guest has agreed on with a device.
    #[error(
        "The guest uses {features} of {device}, which it does not offer here: give it what it had, or save a machine \
         that runs with --portable"
    )]
    Features {
        /// The device.
        device: String,
        /// Names of the features.
        features: String,
    },
    /// A device on the host is not what it was.
    #[error("The guest cannot go on with {device}: {reason}")]
    Changed {
        /// The device.
        device: String,
        /// What is different, and what can be done.
        reason: String,
    },
    /// The data has the right form but cannot be true.
    #[error("Saved state of {kind} is not valid: {reason}")]
    Invalid {
        /// The part.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A part of the machine whose state can be saved and loaded. A device without it does not compile.
pub trait Persist {
    /// The state now. The machine is paused and the part is idle.
    fn save(&self) -> Saved;
    /// Replaces the state by `saved`, or refuses and changes nothing.
    fn load(&mut self, saved: &Saved) -> Result<(), Error>;
}

impl Saved {
    /// Packs plain data.
    pub fn pack(kind: &'static str, version: u32, state: &impl Serialize) -> Self {
        let data = serde_json::to_value(state).unwrap_or_default();
        Saved { kind: kind.into(), version, data }
    }

    /// Unpacks plain data of the given kind and version.
    pub fn unpack<T: DeserializeOwned>(&self, kind: &'static str, version: u32) -> Result<T, Error> {
        if self.kind != kind {
            return Err(Error::Kind { wanted: kind, found: self.kind.clone() });
        }
        if self.version != version {
            return Err(Error::Version { kind, found: self.version, known: version });
        }
        T::deserialize(&self.data).map_err(|source| Error::Form { kind, source })
    }
}
