//! The monitor of one machine: it builds the machine, runs its event loop and decides what becomes of it.
//!
//! ```text
//!   vCPU threads ──┐ exits                     ┌─► pause, resume
//!   devices ───────┤ notices                   ├─► restart in place
//!   signals, keys ─┼──► Inbox ──► Vmm::run ────┼─► power button
//!   API, CLI ──────┘ requests    (main thread) └─► Outcome: the machine has ended
//! ```

mod build;
mod console;
mod disk;
mod error;
mod freeze;
mod machine;
pub mod message;
mod platform;
pub mod rebase;
pub mod request;
mod signals;
pub mod snapshot;
mod vcpus;
mod workers;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use log::{info, warn};
use serde::Serialize;
use serde_json::json;

use crate::agent::Frozen;
use crate::config::VmConfig;
use crate::devices::ged::Event;
use crate::kvm::Exit;
use crate::memory::image::Lazy;
use crate::notice::Notice;

pub use build::{Environment, Lost};
pub use error::Error;
use machine::Machine;
use message::{Inbox, Message, Outbox};
use request::{Request, Response, RunState, Save};
use snapshot::{Capture, Plan, Restore};
use workers::{Subscriber, Wake};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "cause", content = "detail")]
pub enum Outcome {
    /// The guest switched itself off, perhaps with the exit status of its command.
    PowerOff(Option<u8>),
    /// The guest restarted, and restarts were to end it.
    Reboot,
    /// Somebody stopped it from outside, and the guest did not switch itself off in time.
    Stopped,
    /// The guest's kernel panicked.
    Panic,
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

/// A monitor with its machine.
pub struct Vmm {
    machine: Machine,
    config: VmConfig,
    inbox: Inbox,
    events: EventManager<Subscriber>,
    state: RunState,
    /// Why the machine was paused by itself.
    stalled: Option<String>,
    deadline: signals::Deadline,
    grace: Duration,
    paused: bool,
    /// The socket that leads to the guest's agent.
    agent: Option<PathBuf>,
    milestones: Vec<Milestone>,
    first_run: Option<Instant>,
    /// What the guest's command ended with.
    exit_status: Option<u8>,
}

impl Vmm {
    /// Builds the machine: as it is when it is switched on, or as it was saved. It stands still.
    pub fn new(config: VmConfig, restore: Option<&Restore>, environment: Environment) -> Result<Self, Error> {
        let inbox = Inbox::new()?;
        let mut events = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        events.add_subscriber(Box::new(Wake(inbox.wake().clone())));
        let deadline = signals::Deadline::new(inbox.outbox().clone())?;
        events.add_subscriber(deadline.subscriber()?);
        if let Some(termination) = environment.termination {
            events.add_subscriber(Box::new(signals::Signals::new(termination, inbox.outbox().clone())));
        }
        let Environment { grace, paused, .. } = environment;
        let vsock = config.devices.vsock.first().zip(environment.directory.as_ref());
        let agent = vsock.map(|(vsock, directory)| vsock.socket(directory));
        let (machine, subscribers) = build::machine(
            &config,
            restore,
            environment.kernel_cache,
            environment.directory,
            inbox.outbox(),
            environment.lost,
        )?;
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }
        Ok(Vmm {
            machine,
            config,
            inbox,
            events,
            state: RunState::Paused,
            stalled: None,
            deadline,
            grace,
            paused,
            agent,
            milestones: Vec::new(),
            first_run: None,
            exit_status: None,
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

    /// Runs the machine until it ends.
    pub fn run(&mut self) -> Outcome {
        if !self.paused {
            self.resume();
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
            Message::Notice(notice, at) => self.notice(notice, at),
            Message::Exit(vcpu, exit) => Some(match exit {
                Exit::Shutdown => Outcome::TripleFault,
                Exit::Failed(reason) => Outcome::Failed(format!("vCPU {vcpu}: {reason}")),
                other => Outcome::Failed(format!("vCPU {vcpu}: {other:?}")),
            }),
            Message::Failed(reason) => Some(Outcome::Failed(reason)),
            Message::Terminate { force: true } => Some(Outcome::Stopped),
            Message::Terminate { force: false } => self.press_power_button(),
            Message::Request(Request::Save(save), sender) => {
                match Request::Save(save.clone()).check(self.state) {
                    Err(error) => drop(sender.send(Err(error))),
                    Ok(()) if save.freeze => {
                        freeze::freeze(save, self.agent.clone(), self.inbox.outbox().clone(), sender);
                    }
                    Ok(()) => self.save(save, None, sender),
                }
                None
            }
            Message::Frozen(save, frozen, sender) => {
                self.save(save, Some(frozen), sender);
                None
            }
            Message::Request(Request::SaveDisk { target }, sender) => {
                self.save_disk(target, sender);
                None
            }
            Message::Request(request, sender) => {
                let (response, outcome) = self.request(request);
                let _ = sender.send(response);
                outcome
            }
        }
    }

    fn notice(&mut self, notice: Notice, at: Instant) -> Option<Outcome> {
        match notice {
            Notice::PowerOff => return Some(Outcome::PowerOff(self.exit_status)),
            Notice::Panic => return Some(Outcome::Panic),
            Notice::Reset if self.config.no_reboot => return Some(Outcome::Reboot),
            Notice::Reset => {
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

    /// The answer, and the end of the machine if that was asked for.
    fn request(&mut self, request: Request) -> (Response, Option<Outcome>) {
        if let Err(error) = request.check(self.state) {
            return (Err(error), None);
        }
        let mut outcome = None;
        match request {
            Request::Describe => return (Ok(self.describe()), None),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::PowerButton => self.machine.platform.ged.raise(Event::PowerButton),
            Request::Stop { force: false } => outcome = self.press_power_button(),
            // Answered when it is written: see `save`.
            Request::Save(_) | Request::SaveDisk { .. } => {}
            Request::Stop { force: true } => outcome = Some(Outcome::Stopped),
        }
        (Ok(json!({ "state": self.state })), outcome)
    }

    /// Takes a snapshot; the answer is sent when it has been written. The guest's file systems are thawed when it has been taken.
    fn save(&mut self, save: Save, frozen: Option<Frozen>, answer: Sender<Response>) {
        // What is not there yet cannot be saved: the request comes again when it is.
        if let Some(filled) = self.machine.lazy.as_ref().and_then(Lazy::under_way) {
            let outbox = self.outbox();
            let work = move || {
                filled.wait();
                outbox.send(Message::Request(Request::Save(save), answer));
            };
            // The sender that a thread could not take is gone, and whoever waits hears that.
            if let Err(error) = std::thread::Builder::new().name("save-later".into()).spawn(work) {
                log::error!("cannot start the thread that waits for memory: {error}");
            }
            return;
        }
        let captured = self.capture(save);
        let frozen = frozen.map(|frozen| frozen.paths.clone());
        match captured {
            Ok((plan, capture)) => capture.write(plan, frozen, self.inbox.outbox().clone(), answer),
            Err(error) => {
                let _ = answer.send(Err(request::Error::Save(chain(&error))));
            }
        }
    }

    fn capture(&mut self, save: Save) -> Result<(Plan, Capture), Error> {
        let mut plan = Plan::new(save, &self.machine.memory)?;
        let start = Instant::now();
        self.machine.pause();
        let capture = Capture::take(&self.machine, &self.config, start);
        if self.state == RunState::Running {
            // A machine that is to end does nothing more that the snapshot would not have.
            match plan.stop && capture.is_ok() {
                true => (self.state, plan.resume_if_not_written) = (RunState::Paused, true),
                false => self.machine.resume(),
            }
        }
        Ok((plan, capture?))
    }

    fn describe(&self) -> serde_json::Value {
        let uptime = self.first_run.map_or(Duration::ZERO, |first| first.elapsed());
        json!({
            "state": self.state,
            "stalled": self.stalled,
            "console": self.machine.console,
            "pid": std::process::id(),
            "uptime_ms": uptime.as_millis() as u64,
            "stop_timeout_ms": self.grace.as_millis() as u64,
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "config": self.config,
        })
    }

    /// Asks the guest to switch itself off, and gives it some time. A machine that is paused cannot hear it, and a
    /// second wish is not kept waiting.
    fn press_power_button(&mut self) -> Option<Outcome> {
        if self.state == RunState::Paused || self.deadline.is_set() {
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

    fn pause(&mut self) {
        self.machine.pause();
        self.state = RunState::Paused;
    }

    fn resume(&mut self) {
        if self.stalled.take().is_some() {
            self.machine.retry();
        }
        if self.first_run.is_none() {
            let first = Milestone { code: FIRST_RUN, at: Instant::now() };
            self.first_run = Some(first.at);
            self.milestones.push(first);
        }
        self.machine.resume();
        self.state = RunState::Running;
    }
}

/// An error with all that led to it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
