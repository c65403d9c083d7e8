//! `rvmm start` and `rvmm rm`: machines with a name that do not run.

use std::time::Duration;

use super::machine::root_drive;
use super::run::{Prepared, allow};
use crate::api::name::Name;
use crate::cli::output::{Failure, print, print_json};
use crate::cli::run::{STOP_TIMEOUT, seconds};
use crate::cli::{Common, exit, machines, stop, store};
use crate::config::VmConfig;
use crate::console;
use crate::image::{Error, Instance, Store};
use crate::options::similar;
use crate::vmm::chain;

// Options of `start`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm run --name web nginx; rvmm start web
  rvmm start -a web

The machine boots again, with what it had written.")]
pub struct Start {
    /// The machine, as `rvmm ps -a` names it
    #[arg(value_name = "NAME")]
    name: Name,
    /// Stay in the foreground, with the console on the terminal
    #[arg(short, long)]
    attach: bool,
    /// How long a guest may take to switch itself off when it is asked to (SIGTERM, SIGINT, `rvmm stop`); a second signal ends
    /// the machine at once
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT, value_parser = seconds)]
    stop_timeout: u64,
}

// Options of `rm`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm rm web
  rvmm stop web; rvmm rm web
  rvmm rm -f web                 the same at once, as if its power failed

What the machine has written goes with it; `rvmm commit` keeps it as a version of its image.")]
pub struct Rm {
    /// Machines, as `rvmm ps -a` names them
    #[arg(required = true, value_name = "NAME")]
    instances: Vec<String>,
    /// End machines that run
    #[arg(short, long)]
    force: bool,
}

/// Whether a machine of this name runs.
pub fn runs(common: &Common, name: &str) -> Result<bool, Failure> {
    Ok(machines::all(common)?.iter().any(|machine| machine.name == name))
}

/// Why what is known of a machine is of no use, and what then.
pub fn damaged(name: &str, error: &Error) -> String {
    format!("{name}: {}; `rvmm rm -f {name}` removes it", chain(error))
}

/// The instance with this name.
pub fn instance(store: &Store, name: &str) -> Result<Instance, Failure> {
    if let Some(found) = store.instance(name).map_err(|error| Failure::refused(damaged(name, &error)))? {
        return Ok(found);
    }
    let all = store.instance_names().map_err(Failure::refused)?;
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    Err(Failure::refused(match similar(name, &names) {
        Some(nearest) => format!("There is no machine `{name}`, did you mean `{nearest}`?"),
        None => format!("There is no machine `{name}`: `rvmm run --name {name} IMAGE` makes one"),
    }))
}

impl Start {
    /// Starts the machine again.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let lock = store.lock_instance(self.name.as_str()).map_err(Failure::refused)?;
        let mut found = instance(&store, self.name.as_str())?;
        if runs(common, &found.name)? {
            return Err(Failure::refused(format!("`{}` runs already", found.name)));
        }
        let mut config: VmConfig = serde_json::from_value(found.record.machine.clone()).map_err(|error| {
            Failure::refused(format!("What is known of `{}` is damaged: {error}", found.name))
        })?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        lease.hold(&found.record.image.digest).map_err(Failure::refused)?;
        store.drop_covered(&mut found).map_err(Failure::refused)?;
        if let Some(root) = config.devices.block.iter_mut().find(|drive| !drive.base.is_empty()) {
            let unpacked = store.unpack(&found.record.image, store::LIMIT).map_err(Failure::refused)?;
            let new = root_drive(&unpacked, found.path(), true);
            (root.path_on_host, root.base, root.overlay) = (new.path_on_host, new.base, new.overlay);
            root.digests = new.digests;
        }
        config.console = console::Config::default();
        allow(&mut config, self.stop_timeout);
        let prepared = Prepared {
            image: found.record.image,
            kernel: found.record.kernel,
            kept: true,
            config,
            warm: None,
            name: self.name.clone(),
            grace: Duration::from_secs(self.stop_timeout),
            boot_timer: None,
            lock: Some(lock),
            store,
        };
        prepared.start(!self.attach, common)
    }
}

fn remove(store: &Store, name: &str, force: bool, common: &Common) -> Result<(), Failure> {
    let ended = force && stop::by_force(name, common)?;
    let lock = store.lock_instance(name).map_err(Failure::refused)?;
    if runs(common, name)? {
        return Err(Failure::refused(format!(
            "`{name}` runs: `rvmm stop {name}` ends it, `rvmm rm -f {name}` does both"
        )));
    }
    match instance(store, name) {
        Ok(_) => {}
        // However damaged its record is.
        Err(_)
            if force
                && store.instance_names().map_err(Failure::refused)?.iter().any(|known| known == name) => {}
        // One that is not kept goes by itself.
        Err(_) if ended => return Ok(()),
        Err(error) => return Err(error),
    };
    store.remove_instance(&lock).map_err(Failure::refused)
}

impl Rm {
    /// Removes machines.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let (mut removed, mut failed) = (Vec::new(), false);
        for name in &self.instances {
            match remove(&store, name, self.force, common) {
                Ok(()) => removed.push(name),
                Err(failure) => {
                    failure.report(common.json);
                    failed = true;
                }
            }
        }
        match common.json {
            true => print_json(&removed)?,
            false => removed.iter().try_for_each(print)?,
        }
        Ok(if failed { exit::REFUSED } else { 0 })
    }
}
