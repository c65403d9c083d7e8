//! The life of a machine in this process: entered in the runtime directory, built or restored, run, reported.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::warn;

use super::boot_timer::BootTimer;
use super::guest::News;
use super::image::ended::Ended;
use super::output::{Failure, complain};
use super::{Common, exit, identity, machines};
use crate::api::name::Name;
use crate::api::runtime::Entry;
use crate::api::{Server, Service};
use crate::config::{MachineConfig, VmConfig};
use crate::sys::signals::Termination;
use crate::sys::terminal;
use crate::sys::{host, process};
use crate::vmm::snapshot::Restore;
use crate::vmm::{Environment, OnMemoryLost, Outcome, SILENT_RESTARTS, Vmm, chain};

/// What is to be done in a machine's own directory.
pub type Entered = Box<dyn FnOnce(&Path) -> Result<(), Failure>>;

/// How a machine lives.
#[derive(Default)]
pub struct Life {
    /// Its name, if it was given one.
    pub name: Option<Name>,
    /// How long the guest may take to switch itself off when it is asked to.
    pub grace: Duration,
    /// It stands still at first.
    pub start_paused: bool,
    /// What it uses of a snapshot's memory is read before it is used, and recorded there.
    pub read_ahead: bool,
    /// It was saved and does not go on as itself, but as another machine.
    pub new_identity: bool,
    /// Where the log of its console is kept, and how it ended, if not in the machine's own directory only.
    pub log: Option<PathBuf>,
    /// Where its milestones are written.
    pub boot_timer: Option<BootTimer>,
    /// Called with the machine's own directory when it is entered there.
    pub entered: Option<Entered>,
    /// Called when the machine is whole and about to run, or runs and its guest knows who it is; with what the guest could not
    /// be told.
    pub ready: Option<Ready>,
}

/// See [`Life::ready`].
pub type Ready = Box<dyn FnOnce(Option<String>) + Send>;

impl Life {
    /// Makes a machine, new or as it was saved, and stays until it ends.
    pub fn live(
        mut self,
        mut config: VmConfig,
        restore: Option<&Restore>,
        common: &Common,
    ) -> Result<u8, Failure> {
        process::expect_threads();
        let entry = enter(self.name.as_ref(), common)?;
        if let (Some(entered), Some(entry)) = (self.entered.take(), &entry) {
            entered(entry.path())?;
        }
        if entry.is_none() {
            // It has no place for its socket.
            config.devices.vsock.retain(|vsock| vsock.uds_path.is_some());
        }
        let _addresses = identity::decide(&mut config, restore, self.new_identity)?;
        let kept = self.log.clone();
        kept.iter().for_each(|kept| Ended::forget(kept));
        let environment = Environment {
            kernel_cache: cache_directory(),
            // Before any thread starts, so that every thread inherits the mask.
            termination: Some(Termination::new().map_err(Failure::usage)?),
            grace: self.grace,
            directory: entry.as_ref().map(|entry| entry.path().to_path_buf()),
            log: self.log.take(),
            start_paused: self.start_paused,
            read_ahead: self.read_ahead,
            on_memory_lost: Some(end_without_memory(entry.as_ref(), common)),
        };
        let outcome = self.run(config, restore, environment, entry.as_ref());
        terminal::restore();
        let outcome = outcome?;
        kept.iter().for_each(|kept| Ended::note(kept, &outcome));
        report(&outcome, entry.as_ref().map(Entry::name), common.json);
        Ok(exit::status(&outcome))
    }

    /// Runs a machine and answers for it until it ends.
    fn run(
        self,
        config: VmConfig,
        restore: Option<&Restore>,
        environment: Environment,
        entry: Option<&Entry>,
    ) -> Result<Outcome, Failure> {
        let listener = entry.map(Entry::listen).transpose().map_err(Failure::usage)?;
        let news = restore.zip(entry).and_then(|(restore, entry)| {
            let name = self.name.as_ref().map(Name::as_str);
            News::of(restore, &config, entry.path(), name, self.start_paused)
        });
        let MachineConfig { mem_size_mib: wanted, vcpu_count: vcpus, .. } = config.machine_config;
        let mut vmm = Vmm::new(config, restore, environment).map_err(Failure::usage)?;
        // Nobody guesses it: it is told whatever the log tells.
        if let Some(place) = vmm.console() {
            let _ = writeln!(io::stderr(), "rvmm: the console is at {place}");
        }
        let there = host::memory_mib();
        if wanted > there {
            warn!(
                "the machine may use {wanted} MiB of memory, and the host has {there} MiB: it ends when they are used up"
            );
        }
        // Files of cgroups are read for that; one vCPU always has a processor.
        let processors = match vcpus {
            1 => 1,
            _ => thread::available_parallelism().map_or(u32::MAX, |number| number.get() as u32),
        };
        if vcpus > processors {
            warn!("the machine has {vcpus} vCPUs, and {processors} may run here: the others wait meanwhile");
        }
        let service = entry.map(|entry| Service::new(entry.name(), vmm.outbox()));
        let server = listener.zip(service).map(|(listener, service)| Server::start(listener, service));
        let server = server.transpose().map_err(Failure::usage)?;
        let teller = announce(news, self.ready, self.start_paused)?;
        let outcome = vmm.run();
        if let Some(boot_timer) = self.boot_timer {
            boot_timer.write(vmm.milestones());
        }
        // The server ends while the machine is taken down; a request that came too late is answered when the monitor is
        // gone, and the server waits for that.
        if let Some(server) = &server {
            server.stop();
        }
        drop(vmm);
        drop(server);
        // The guest's end of its connection is gone.
        if let Some(teller) = teller {
            let _ = teller.join();
        }
        Ok(outcome)
    }
}

/// Has the guest told who it is while it runs, and says then that the machine is ready; at once if nothing is to be told or the
/// guest stands still.
fn announce(
    news: Option<News>,
    ready: Option<Ready>,
    paused: bool,
) -> Result<Option<JoinHandle<()>>, Failure> {
    let warn = |untold: Option<String>| untold.iter().for_each(|untold| warn!("{untold}"));
    let mut ready = ready.unwrap_or_else(|| Box::new(warn));
    if paused {
        std::mem::replace(&mut ready, Box::new(warn))(None);
    }
    let Some(news) = news else {
        ready(None);
        return Ok(None);
    };
    let tell = move || ready(news.tell());
    thread::Builder::new().name("news".into()).spawn(tell).map(Some).map_err(Failure::usage)
}

/// Enters the machine in the runtime directory. A machine that nobody named runs without, too.
fn enter(name: Option<&Name>, common: &Common) -> Result<Option<Entry>, Failure> {
    let directory = machines::directory(common);
    match name {
        Some(name) => directory.claim(name).map(Some).map_err(Failure::usage),
        None => match directory.claim_any() {
            Ok(entry) => Ok(Some(entry)),
            Err(error) => {
                warn!("`rvmm ps` will not know this machine: {}", chain(&error));
                Ok(None)
            }
        },
    }
}

/// Ends the program when the machine's memory is lost.
fn end_without_memory(entry: Option<&Entry>, common: &Common) -> OnMemoryLost {
    let (name, json) = (entry.map(|entry| entry.name().to_string()), common.json);
    Box::new(move |reason| {
        terminal::restore();
        let outcome = Outcome::Failed(reason.into());
        report(&outcome, name.as_deref(), json);
        std::process::exit(exit::status(&outcome).into())
    })
}

/// Says how the machine ended, if that is worth a word.
fn report(outcome: &Outcome, name: Option<&str>, json: bool) {
    let status = exit::status(outcome);
    let message = match outcome {
        _ if json => {
            let mut report = serde_json::to_value(outcome).unwrap_or_default();
            report["status"] = status.into();
            report["name"] = name.into();
            let _ = writeln!(io::stderr(), "{report}");
            return;
        }
        Outcome::PowerOff(_) | Outcome::Reboot => return,
        Outcome::Stopped => "the machine was stopped",
        Outcome::Panic => "the guest's kernel panicked",
        Outcome::Silent => &format!(
            "the guest restarted {SILENT_RESTARTS} times in a row before it used its console or a device, as a kernel does \
             that panics early: `--cmdline earlyprintk=ttyS0` shows why, and more --memory may help"
        ),
        Outcome::TripleFault => "the guest crashed with a triple fault",
        Outcome::Failed(reason) => &format!("internal error: {reason}"),
    };
    complain(false, status, message);
}

/// Where decompressed kernels are kept, by the XDG base directory specification.
fn cache_directory() -> Option<PathBuf> {
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = directory("XDG_CACHE_HOME").or_else(|| directory("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("rvmm/kernels"))
}
