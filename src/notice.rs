//! What a device tells the monitor: the guest wants to end, or the device cannot go on.

use std::sync::Arc;

/// Something that happened inside a device and that only the monitor can act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest asked for a restart (reset register, i8042).
    Reset,
    /// The guest switched the machine off (ACPI sleep state S5).
    PowerOff,
    /// The guest's kernel panicked (pvpanic).
    Panic,
    /// A device cannot go on until something on the host is put right; the machine is to be
    /// paused, and the device tries again on resume.
    Stalled {
        /// What the user is told, for example `disk vda: no space left on the host`.
        reason: String,
    },
    /// The guest's command ended with this status (exit status port); the guest is about to switch itself off.
    ExitStatus(u8),
    /// The guest reached a milestone on its way up (boot-timer port).
    Milestone(u8),
}

/// Where notices go. It never blocks, and is cheap to clone.
#[derive(Clone)]
pub struct Notifier(Arc<dyn Fn(Notice) + Send + Sync>);

impl Notifier {
    /// Calls `deliver` for every notice, on the thread where it arises.
    pub fn new(deliver: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Notifier(Arc::new(deliver))
    }

    /// Tells the monitor.
    pub fn notify(&self, notice: Notice) {
        (self.0)(notice);
    }
}
