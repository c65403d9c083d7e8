//! The monitor of one machine: it builds the machine, runs its event loop and decides what becomes of it.
//!
//! ```text
//!   vCPU threads ──┐ exits                     ┌─► pause, resume
//!   devices ───────┤ notices                   ├─► restart in place
//!   signals, keys ─┼──► Inbox ──► Vmm::run ────┼─► power button
//!   API, CLI ──────┘ requests    (main thread) └─► Outcome: the machine has ended
//! ```

mod build;
mod capture;
mod console;
mod disk;
mod error;
mod freeze;
mod machine;
pub mod message;
mod platform;
mod power;
pub mod rebase;
pub mod request;
mod signals;
pub mod snapshot;
mod vcpus;
mod watchers;
mod workers;
mod writers;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use log::{info, warn};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::VmConfig;
use crate::devices::ged::Event;
use crate::kvm::Exit;
use crate::notice::Notice;
use crate::sys::program;

pub use crate::sys::chain;
pub use build::{Environment, OnMemoryLost};
pub use error::Error;
use machine::Machine;
use message::{Inbox, Message, Outbox};
use request::{Request, Response, RunState};
use snapshot::Restore;
use watchers::Watchers;
use workers::{Subscriber, Wake};
use writers::Writers;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause", content = "detail")]
pub enum Outcome {
    /// The guest switched itself off, perhaps with the exit status of its command.
    PowerOff(Option<u8>),
    /// The guest restarted, and restarts were to end it.
    Reboot,
    /// Somebody stopped it from outside, and the guest did not switch itself off in time.
    Stopped,
    /// The guest's kernel panicked: its panic device told so, or its console and then it was reset.
    Panic,
    /// The guest restarted [`SILENT_RESTARTS`] times in a row before it used its console or a device.
    Silent,
    /// A vCPU shut down after a triple fault.
    TripleFault,
    /// KVM or the monitor failed; what is known about it.
    Failed(String),
}

/// A time that the guest or the machine reached a milestone.
#[derive(Clone, Copy, Debug)]
pub struct Milestone {
    /// Which: what the guest wrote, or [`FIRST_RUN`].
    pub code: u8,
    /// When.
    pub at: Instant,
}

/// The milestone when vCPUs are first let go: before the first guest instruction by the time that a thread takes to wake up.
pub const FIRST_RUN: u8 = 0xff;

/// A kernel that panics early, and is told to restart then, does so for ever, and nobody hears of it. A guest that does nothing that
/// outlasts a restart does the same each time, so that so many are enough.
pub const SILENT_RESTARTS: u32 = 3;

/// A monitor with its machine.
pub struct Vmm {
    machine: Machine,
    writers: Writers,
    turns: freeze::Turns,
    watchers: Watchers,
    config: VmConfig,
    inbox: Inbox,
    events: EventManager<Subscriber>,
    state: RunState,
    /// What it was before it stood still to be saved.
    before: RunState,
    /// What it is to hear when it has been saved.
    later: Vec<Message>,
    /// Why the machine was paused by itself.
    stalled: Option<String>,
    deadline: signals::Deadline,
    grace: Duration,
    start_paused: bool,
    /// Whether it is booted here. Machines that are restored share with each other what the program has touched.
    boots: bool,
    /// The socket that leads to the guest's agent.
    agent: Option<PathBuf>,
    /// The machine's own directory.
    directory: Option<PathBuf>,
    milestones: Vec<Milestone>,
    first_run: Option<Instant>,
    /// What the guest's command ended with.
    exit_status: Option<u8>,
    /// Restarts in a row of a guest that had used nothing.
    silent_restarts: u32,
}

impl Vmm {
    /// Builds the machine: as it is when it is switched on, or as it was saved. It stands still.
    pub fn new(
        config: VmConfig,
        restore: Option<&Restore>,
        mut environment: Environment,
    ) -> Result<Self, Error> {
        // Whoever asks what it is gets all of it as JSON.
        serde_json::to_value(&config).map_err(Error::Name)?;
        let inbox = Inbox::new()?;
        let mut events = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        events.add_subscriber(Box::new(Wake(inbox.wake().clone())));
        let deadline = signals::Deadline::new(inbox.outbox().clone())?;
        events.add_subscriber(deadline.subscriber()?);
        if let Some(termination) = environment.termination.take() {
            events.add_subscriber(Box::new(signals::Signals::new(termination, inbox.outbox().clone())));
        }
        let (grace, start_paused, directory) =
            (environment.grace, environment.start_paused, environment.directory.clone());
        let vsock = config.devices.vsock.first().zip(directory.as_ref());
        let agent = vsock.map(|(vsock, directory)| vsock.socket(directory));
        let (machine, subscribers) = build::machine(&config, restore, environment, inbox.outbox())?;
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }
        Ok(Vmm {
            machine,
            writers: Writers::default(),
            turns: freeze::Turns::default(),
            watchers: Watchers::default(),
            config,
            inbox,
            events,
            state: RunState::Paused,
            before: RunState::Paused,
            later: Vec::new(),
            stalled: None,
            deadline,
            grace,
            start_paused,
            boots: restore.is_none(),
            agent,
            directory,
            milestones: Vec::new(),
            first_run: None,
            exit_status: None,
            silent_restarts: 0,
        })
    }

    /// A way to talk to the monitor from other threads.
    pub fn outbox(&self) -> Outbox {
        self.inbox.outbox().clone()
    }

    /// Where a person finds the console, if that is not plain.
    pub fn console(&self) -> Option<&str> {
        self.machine.console.as_deref()
    }

    /// What was reached, in order.
    pub fn milestones(&self) -> &[Milestone] {
        &self.milestones
    }

    /// Runs the machine until it ends, and what was captured of it is written.
    pub fn run(&mut self) -> Outcome {
        let outcome = self.run_machine();
        self.inbox.close();
        self.watchers.tell(&outcome);
        self.writers.finish();
        outcome
    }

    fn run_machine(&mut self) -> Outcome {
        if !self.start_paused {
            self.resume();
        }
        if self.boots {
            program::give_back_start();
        }
        loop {
            while let Some(message) = self.inbox.take() {
                if let Some(outcome) = self.handle(message) {
                    self.machine.pause();
                    return outcome;
                }
            }
            if let Err(error) = self.events.run() {
                return Outcome::Failed(format!("the event loop fails: {error}"));
            }
        }
    }

    fn handle(&mut self, message: Message) -> Option<Outcome> {
        match message {
            message if self.is_for_later(&message) => {
                self.later.push(message);
                None
            }
            Message::Notice(notice, at) => self.notice(notice, at),
            Message::Exit(vcpu, exit) => Some(match exit {
                // A way to restart (`reboot=triple`).
                Exit::Shutdown if self.panicked() => Outcome::Panic,
                Exit::Shutdown => Outcome::TripleFault,
                Exit::Failed(reason) => Outcome::Failed(format!("vCPU {vcpu}: {reason}")),
                other => Outcome::Failed(format!("vCPU {vcpu}: {other:?}")),
            }),
            Message::Failed(reason) => Some(Outcome::Failed(reason)),
            Message::Terminate { force: true } => Some(Outcome::Stopped),
            Message::Terminate { force: false } => self.press_power_button(),
            Message::Capture(save, held, writer) => {
                self.capture(save, held, writer);
                None
            }
            Message::Written { end: true } => Some(Outcome::Stopped),
            Message::Written { end: false } => self.go_on(),
            Message::Frozen(request, held, answer) => {
                self.write(request, Some(held), answer);
                None
            }
            Message::Thawed => {
                self.thawed();
                None
            }
            Message::Request(request, answer) => self.request(request, answer),
        }
    }

    fn notice(&mut self, notice: Notice, at: Instant) -> Option<Outcome> {
        match notice {
            Notice::PowerOff => return Some(Outcome::PowerOff(self.exit_status)),
            Notice::Panic => return Some(Outcome::Panic),
            Notice::Reset if self.panicked() => return Some(Outcome::Panic),
            Notice::Reset if self.config.no_reboot => return Some(Outcome::Reboot),
            Notice::Reset => {
                self.silent_restarts = if self.machine.is_silent() { self.silent_restarts + 1 } else { 0 };
                if self.silent_restarts == SILENT_RESTARTS {
                    return Some(Outcome::Silent);
                }
                self.exit_status = None;
                info!("the guest restarts");
                let off = self.machine.power_off();
                // A guest that wants to restart tries in several ways; the first has worked.
                self.inbox.forget_guest();
                if let Err(error) = off.and_then(|()| self.machine.power_on()) {
                    return Some(Outcome::Failed(format!("the restart failed: {}", chain(&error))));
                }
                // Somebody may have paused it meanwhile.
                if self.state == RunState::Running {
                    self.machine.resume();
                }
            }
            Notice::Stalled { reason } => {
                warn!("the machine is paused: {reason}");
                self.pause();
                self.stalled = Some(reason);
            }
            Notice::ExitStatus(status) => self.exit_status = Some(status),
            Notice::Milestone(code) => self.milestones.push(Milestone { code, at }),
        }
        None
    }

    /// Whether a reset is that of a kernel that panicked and had no driver for the panic device.
    fn panicked(&self) -> bool {
        self.machine.platform.serial.tells_of_a_panic()
    }

    /// Does what is asked and answers it. Returns the end of the machine if that was asked for.
    fn request(&mut self, request: Request, answer: Sender<Response>) -> Option<Outcome> {
        if let Err(error) = request.check(self.state) {
            let _ = answer.send(Err(error));
            return None;
        }
        let (mut response, mut outcome) = (None, None);
        match request {
            // Answered when it is written, or when the machine has ended.
            Request::Save(_) | Request::SaveDisk { .. } => {
                self.begin(request, answer);
                return None;
            }
            Request::AwaitEnd => {
                self.watchers.add(answer);
                return None;
            }
            Request::Describe => response = Some(Ok(self.describe())),
            Request::StandOn { base, above } => response = Some(self.stand_on(base, above)),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::PowerButton => self.machine.platform.ged.raise(Event::PowerButton),
            Request::Stop { force: false } => outcome = self.press_power_button(),
            Request::Stop { force: true } => outcome = Some(Outcome::Stopped),
        }
        // Whoever asks hears of its end here: another request, for the machine's end, may come later than this one.
        let told = || json!({ "state": self.state, "stopped": outcome.is_some() });
        let _ = answer.send(response.unwrap_or_else(|| Ok(told())));
        outcome
    }

    fn describe(&self) -> serde_json::Value {
        let config = serde_json::to_value(&self.config).unwrap_or_default();
        let uptime = self.first_run.map_or(Duration::ZERO, |first| first.elapsed());
        json!({
            "state": self.state,
            "stalled": self.stalled,
            "console": self.machine.console,
            "pid": std::process::id(),
            "uptime_ms": uptime.as_millis() as u64,
            "stop_timeout_ms": self.grace.as_millis() as u64,
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "config": config,
        })
    }

    fn pause(&mut self) {
        self.machine.pause();
        if self.state == RunState::Running {
            self.state = RunState::Paused;
        }
    }

    fn resume(&mut self) {
        if self.stalled.take().is_some() {
            self.machine.retry();
        }
        let first = Milestone { code: FIRST_RUN, at: Instant::now() };
        self.machine.resume();
        if self.first_run.is_none() {
            self.first_run = Some(first.at);
            self.milestones.push(first);
            self.machine.has_begun();
        }
        self.state = RunState::Running;
    }
}

#[cfg(test)]
mod tests;
