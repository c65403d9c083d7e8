//! Machines that run, by name: what commands share that speak to them.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::output::{Failure, complain, print, print_json};
use super::{Common, exit, store, variable};
use crate::api::client;
use crate::api::runtime::{Directory, Machine};
use crate::config::VmConfig;
use crate::options;
use crate::sys::user;
use crate::vmm::chain;

/// How long a machine may take to answer, on a host with more to do than it can.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a command could not be carried out for a machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such machine.
    #[error("There is no machine `{name}`, did you mean `{nearest}`?")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The machine whose name looks most like it.
        nearest: String,
    },
    /// No machine at all.
    #[error("There is no machine `{name}`, none is running")]
    None {
        /// What was asked for.
        name: String,
    },
    /// None of those that run.
    #[error("There is no machine `{name}`: `rvmm ps -a` lists those that there are")]
    Absent {
        /// What was asked for.
        name: String,
    },
    /// It is there and does not run.
    #[error("The machine `{name}` does not run: `rvmm start {name}` starts it")]
    Stopped {
        /// What was asked for.
        name: String,
    },
    /// It did not do it.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// It is still there.
    #[error("The machine still runs after {seconds} s, `rvmm stop --force` ends it")]
    StillThere {
        /// How long it had.
        seconds: u64,
    },
    /// Its process could not be ended.
    #[error("Cannot end the machine's process")]
    Kill(#[source] std::io::Error),
}

impl Error {
    /// Whether no such machine runs.
    pub fn is_absent(&self) -> bool {
        use Error::{Absent, None, Stopped, Unknown};
        matches!(self, Unknown { .. } | None { .. } | Absent { .. } | Stopped { .. })
    }
}

/// What became of a command for each machine, by name.
pub type Results<T> = Vec<(String, Result<T, Error>)>;

/// Where machines of this user are found.
pub fn directory(common: &Common) -> Directory {
    let told = common.runtime_dir.clone().or_else(|| variable("RVMM_RUNTIME_DIR"));
    let path = told.unwrap_or_else(|| {
        use std::os::unix::fs::MetadataExt;
        let id = user::effective();
        // After `su` or `sudo` the variable may still be the one of the other user.
        let ours = |path: &PathBuf| {
            path.is_absolute() && std::fs::metadata(path).is_ok_and(|found| found.uid() == id)
        };
        match variable("XDG_RUNTIME_DIR").filter(ours) {
            Some(base) => base.join("rvmm"),
            None if id == 0 => "/run/rvmm".into(),
            None => format!("/tmp/rvmm-{id}").into(),
        }
    });
    Directory::new(path)
}

/// All machines that run.
pub fn all(common: &Common) -> Result<Vec<Machine>, Failure> {
    directory(common).machines().map_err(Failure::refused)
}

/// The machines with these names, in their order.
fn by_name(common: &Common, names: &[String]) -> Result<Results<Machine>, Failure> {
    let mut machines = all(common)?;
    let known: Vec<String> = machines.iter().map(|machine| machine.name.clone()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let stopped = match names.iter().all(|name| known.contains(&name.as_str())) {
        true => Vec::new(),
        false => store::existing(common)?.and_then(|store| store.instance_names().ok()).unwrap_or_default(),
    };
    let find = |name: &String| {
        let found = machines.iter().position(|machine| machine.name == *name);
        let machine = found.map(|place| machines.swap_remove(place)).ok_or_else(|| {
            let name = name.clone();
            match options::similar(&name, &known) {
                _ if stopped.contains(&name) => Error::Stopped { name },
                Some(nearest) => Error::Unknown { nearest: nearest.into(), name },
                None if known.is_empty() => Error::None { name },
                None => Error::Absent { name },
            }
        });
        (name.clone(), machine)
    };
    let mut unique: Vec<String> = Vec::new();
    names.iter().for_each(|name| {
        if !unique.contains(name) {
            unique.push(name.clone())
        }
    });
    Ok(unique.iter().map(find).collect())
}

/// The machine with this name.
pub fn one(common: &Common, name: &str) -> Result<Machine, Failure> {
    let found = by_name(common, &[name.to_string()])?.pop();
    let (_, machine) = found.unwrap_or_else(|| (String::new(), Err(Error::None { name: name.into() })));
    machine.map_err(Failure::refused)
}

/// What a machine was asked to be.
pub fn config(machine: &Machine) -> Result<VmConfig, Failure> {
    serde_json::from_value(description(machine)?["config"].take()).map_err(Failure::refused)
}

/// How long a machine has been there.
pub fn uptime(machine: &Machine) -> Result<Duration, Failure> {
    Ok(Duration::from_millis(description(machine)?["uptime_ms"].as_u64().unwrap_or(u64::MAX)))
}

fn description(machine: &Machine) -> Result<Value, Failure> {
    ask(machine, "GET", "/vm", None).map_err(Failure::refused)
}

/// Which machines a command is for.
pub enum Selection<'a> {
    /// Those with these names.
    Names(&'a [String]),
    /// All that run.
    All,
}

/// Does the same to several machines at once. Returns name and result of each.
pub fn each<T: Send>(
    common: &Common,
    selection: Selection,
    act: impl Fn(&Machine) -> Result<T, Error> + Sync,
) -> Result<Results<T>, Failure> {
    let machines = match selection {
        Selection::Names(names) => by_name(common, names)?,
        Selection::All => {
            all(common)?.into_iter().map(|machine| (machine.name.clone(), Ok(machine))).collect()
        }
    };
    let act = &act;
    Ok(thread::scope(|scope| {
        let started: Vec<_> =
            machines.into_iter().map(|(name, machine)| (name, scope.spawn(move || act(&machine?)))).collect();
        let join = |(name, thread): (String, thread::ScopedJoinHandle<_>)| match thread.join() {
            Ok(result) => (name, result),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        started.into_iter().map(join).collect()
    }))
}

/// What is told of something that was done, beyond that.
pub trait Told {
    /// Adds to what programs read.
    fn json(&self, _object: &mut Value) {}
    /// What people read on standard error.
    fn remark(&self) -> Option<&str> {
        None
    }
}

impl Told for () {}

/// Says for which machines it was done and for which not; returns the program's status.
pub fn report<T: Told>(common: &Common, results: &Results<T>) -> Result<u8, Failure> {
    if common.json {
        let line = |(name, result): &(String, Result<T, Error>)| match result {
            Ok(told) => {
                let mut object = json!({ "name": name, "done": true });
                told.json(&mut object);
                object
            }
            Err(error) => json!({ "name": name, "done": false, "error": chain(error) }),
        };
        print_json(&results.iter().map(line).collect::<Vec<_>>())?;
    } else {
        for (name, result) in results {
            match result {
                Ok(told) => {
                    print(name)?;
                    if let Some(remark) = told.remark() {
                        complain(false, 0, &format!("{name}: {remark}"));
                    }
                }
                Err(error) => complain_about(common, name, error),
            }
        }
    }
    Ok(if results.iter().all(|(_, result)| result.is_ok()) { 0 } else { exit::REFUSED })
}

/// What is wrong with one machine.
pub fn reason(name: &str, error: &Error) -> String {
    match error.is_absent() {
        true => chain(error),
        false => format!("{name}: {}", chain(error)),
    }
}

/// Says that on standard error.
pub fn complain_about(common: &Common, name: &str, error: &Error) {
    complain(common.json, exit::REFUSED, &reason(name, error));
}

/// Asks a machine for something that takes no time. One that only starts is waited for.
pub fn ask(machine: &Machine, method: &str, path: &str, body: Option<Value>) -> Result<Value, Error> {
    ask_for(machine, method, path, body, PATIENCE)
}

/// Asks a machine for something that may take it so long. One that only starts is waited for.
pub fn ask_for(
    machine: &Machine,
    method: &str,
    path: &str,
    body: Option<Value>,
    time: Duration,
) -> Result<Value, Error> {
    Ok(patiently(machine, || client::call(&machine.socket, method, path, body.as_ref(), time))?)
}

/// Does something with a machine's socket; a machine that only starts is waited for.
pub fn patiently<T>(
    machine: &Machine,
    act: impl Fn() -> Result<T, client::Error>,
) -> Result<T, client::Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match act() {
            Err(client::Error::Absent { .. }) if Instant::now() < deadline && !machine.is_gone() => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}
