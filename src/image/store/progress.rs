//! Work that takes long tells how far it is.

use std::sync::Arc;

use super::Store;

/// How far a piece of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done, as a verb: `reading`, `packing`.
    pub doing: &'static str,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, if that is known.
    pub total: Option<u64>,
}

/// Whoever wants to know.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

impl Store {
    /// The same store; `progress` hears of work that takes long.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    pub(in crate::image) fn tell(&self, doing: &'static str, done: u64, total: Option<u64>) {
        if let Some(progress) = &self.progress {
            progress(Step { doing, done, total });
        }
    }
}
