//! What the program's exit status means.

use crate::vmm::Outcome;

/// A command did not do all that it was asked for.
pub const REFUSED: u8 = 1;
/// Nothing was started: bad usage, a missing file, a machine that is not possible here.
pub const USAGE: u8 = 125;
/// KVM or rvmm failed.
pub const FAILED: u8 = 126;
const PANIC: u8 = 127;
const TRIPLE_FAULT: u8 = 128;
const STOPPED: u8 = 130;

/// The table, for `--help`.
pub const HELP: &str = "Exit status:
  0    the guest switched itself off (or restarted, with --no-reboot); a command succeeded
  1    a command failed; doctor: Linux guests do not run directly here
  125  nothing was started: bad usage, a missing file, a machine that is not possible here
  126  internal error of KVM or rvmm
  127  the guest's kernel panicked, or restarted again and again before it used its console or a device
  128  the guest crashed with a triple fault
  130  the machine was stopped by force
An image's command may end with any status, which then is rvmm's; --json names the cause: power-off";

/// The status for the end of a machine.
pub fn status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::PowerOff(status) => status.unwrap_or(0),
        Outcome::Reboot => 0,
        Outcome::Failed(_) => FAILED,
        Outcome::Panic | Outcome::Silent => PANIC,
        Outcome::TripleFault => TRIPLE_FAULT,
        Outcome::Stopped => STOPPED,
    }
}
