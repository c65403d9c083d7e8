//! `rvmm stop`: ends machines, orderly if the guest listens.
//!
//! ```text
//!                    Stop                  the guest switches itself off, or its machine's --stop-timeout passes ──► gone
//!   --timeout S      PowerButton, S s, Kill                                                                      ──► gone
//!   --force          Kill, or SIGKILL for a process that does not answer or end                                  ──► gone
//! ```
//!
//! A machine that is being saved answers when it goes on and its guest hears the button: until then nobody's time passes.
//! A second connection waits for the machine to tell how it ended.

use std::time::Duration;

use serde_json::{Value, json};

use super::Common;
use super::end::{End, gone};
use super::machines::{self, Error, PATIENCE, Selection, Told, ask};
use super::output::Failure;
use super::snapshot;
use crate::api::client;
use crate::api::runtime::Machine;
use crate::vmm::request::RunState;

/// How long the end of a machine may take after it was told to end.
const TEARDOWN: Duration = Duration::from_secs(10);

// Options of `stop`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm stop web                  press the power button; by force after the machine's --stop-timeout
  rvmm stop --timeout 60 web     give the guest a minute
  rvmm stop --force --all        end all machines at once, as if their power failed

The init of an image ends its command when the machine's --stop-timeout is over, however long is waited here. \
The command waits until the machines are gone: their disks are free and their names can be taken again. It says of which guests \
it did not switch off; with --json, `forced` tells whether force was needed, or null where nobody knows.")]
pub struct Args {
    /// Machines, as `rvmm ps` names them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All machines of this user
    #[arg(short, long)]
    all: bool,
    /// Do not ask the guest
    #[arg(short, long, conflicts_with = "timeout")]
    force: bool,
    /// How long a guest may take to switch itself off [default: its machine's --stop-timeout]
    #[arg(short, long, value_name = "SECONDS", value_parser = super::run::seconds)]
    timeout: Option<u64>,
}

/// Stops machines and waits until they are gone.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let selection = if args.all { Selection::All } else { Selection::Names(&args.names) };
    let results = machines::each(common, selection, |machine| {
        let end = End::watch(machine);
        let forced = match stop(machine, args) {
            // A machine that ends by itself meanwhile does not answer any more, and that is what was wanted.
            Err(Error::Client(client::Error::Lost(_) | client::Error::Refused { status: 503, .. })) => {
                gone_unless_saved(machine, TEARDOWN).map(|()| false)
            }
            Err(_) if machine.is_gone() => Ok(false),
            result => result,
        }?;
        let forced = if forced { Some(true) } else { was_forced(end) };
        Ok(Stopped { forced, wanted: args.force })
    })?;
    machines::report(common, &results)
}

/// How a machine was stopped.
struct Stopped {
    /// By force, or by its guest, if that is known.
    forced: Option<bool>,
    /// Force is what the user wanted.
    wanted: bool,
}

impl Told for Stopped {
    fn json(&self, object: &mut Value) {
        object["forced"] = self.forced.into();
    }

    fn remark(&self) -> Option<&str> {
        let surprising = self.forced == Some(true) && !self.wanted;
        surprising.then_some("the guest did not switch itself off, so the machine was stopped by force")
    }
}

/// Whether a machine that is gone was stopped by force. One that was killed could not tell.
fn was_forced(end: End) -> Option<bool> {
    match end.told(PATIENCE) {
        Ok(outcome) => Some(outcome["cause"] == "stopped"),
        Err(client::Error::Lost(_)) => Some(true),
        // It was about to end before it was asked.
        Err(client::Error::Absent { .. } | client::Error::Refused { status: 503, .. }) => Some(false),
        Err(_) => None,
    }
}

/// Whether it is known to have been stopped by force.
fn stop(machine: &Machine, args: &Args) -> Result<bool, Error> {
    if args.force {
        return force(machine);
    }
    // One that hangs does not answer, and is not waited for as one that is being saved.
    let description = ask(machine, "GET", "/vm", None)?;
    match args.timeout.map(Duration::from_secs) {
        Some(time) => {
            match act(machine, "PowerButton", snapshot::PATIENCE) {
                // It cannot hear the button.
                Err(Error::Client(client::Error::Refused { status: 409, .. })) => {}
                pressed => {
                    pressed?;
                    if gone_unless_saved(machine, time).is_ok() {
                        return Ok(false);
                    }
                }
            }
            force(machine)
        }
        None => {
            let grace = Duration::from_millis(description["stop_timeout_ms"].as_u64().unwrap_or(0));
            let stopped = act(machine, "Stop", snapshot::PATIENCE)?["stopped"] == true;
            gone_unless_saved(machine, grace.saturating_add(TEARDOWN)).map(|()| stopped)
        }
    }
}

/// Waits until a machine is gone. If its time is over while it is being saved, its guest could not use all of that, and gets it again;
/// a machine that has ended goes when its snapshot is written.
fn gone_unless_saved(machine: &Machine, time: Duration) -> Result<(), Error> {
    let told = || client::call(&machine.socket, "GET", "/vm", None, PATIENCE);
    loop {
        match gone(machine, time) {
            Err(Error::StillThere { .. }) if is_saved(&told()) => {}
            result => return result,
        }
    }
}

/// Whether a machine that tells this is being saved, or has ended and is not gone: it answers no more when all is written.
fn is_saved(told: &Result<Value, client::Error>) -> bool {
    match told {
        Ok(told) => told["state"] == json!(RunState::Saving),
        Err(error) => matches!(error, client::Error::Refused { status: 503, .. }),
    }
}

fn act(machine: &Machine, action: &str, time: Duration) -> Result<Value, Error> {
    machines::ask_for(machine, "PUT", "/actions", Some(json!({ "action_type": action })), time)
}

/// Ends the machine `name` at once; false if none runs.
pub fn by_force(name: &str, common: &Common) -> Result<bool, Failure> {
    let machines = machines::all(common)?;
    let Some(machine) = machines.iter().find(|machine| machine.name == name) else { return Ok(false) };
    match force(machine) {
        Err(error) if !machine.is_gone() => Err(Failure::refused(error)),
        _ => Ok(true),
    }
}

/// Ends a machine at once; whether it is known that it did not end by itself before.
fn force(machine: &Machine) -> Result<bool, Error> {
    let killed = act(machine, "Kill", PATIENCE);
    let answers = !matches!(killed, Err(Error::Client(client::Error::Silent | client::Error::Absent { .. })));
    // One that answers may yet hang in its end: nobody may read its standard error.
    if answers && gone(machine, TEARDOWN).is_ok() {
        return Ok(killed.is_ok_and(|answer| answer["stopped"] == true));
    }
    machine.kill().map_err(Error::Kill)?;
    gone(machine, TEARDOWN).map(|()| false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_waited_for_that_is_saved_and_no_other() {
        let refused =
            |status| Err(client::Error::Refused { status, message: "The machine has ended".into() });
        let tells = |state: &str| Ok(json!({ "state": state }));
        for (told, waits) in [
            (tells("Saving"), true),
            (refused(503), true),
            (tells("Running"), false),
            (refused(409), false),
            (Err(client::Error::Silent), false),
        ] {
            assert_eq!(is_saved(&told), waits, "{told:?}");
        }
    }
}
