//! `rvmm run IMAGE`: a machine over the layers of an image, which it shares with all others.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::habits::{check_volume, stop_signal, variable, variables, warn_of_piped_input};
use super::machine::{Overrides, Runnable, Volume, document};
use super::stands_on::StandsOn;
use super::start::runs;
use super::warm;
use crate::api::name::Name;
use crate::cli::boot_timer::BootTimer;
use crate::cli::life::{Life, Ready};
use crate::cli::output::{Failure, print, print_json};
use crate::cli::{Common, background, run, store};
use crate::config::VmConfig;
use crate::console;
use crate::devices::virtio::{block, net};
use crate::image::{Descriptor, Digest, InstanceLock, Record, Store, rfc3339};
use crate::memory::image::Mode;
use crate::net::publish::Publish;
use crate::vmm::snapshot::Restore;

// Options of `run`.
#[derive(clap::Args)]
pub struct Run {
    /// The image; without one, a kernel is booted as in the bare form
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// A command at the place where containers have it
    #[arg(hide = true, value_name = "WORD")]
    misplaced: Vec<String>,
    /// Print help
    // Instead of clap's own, whose short form is the one of --hostname for users of containers.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    container: Container,
    #[command(flatten)]
    machine: run::Args,
}

// Options of machines that run images.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Images")]
pub struct Container {
    /// Run in the background; `rvmm logs` shows the console
    #[arg(short, long, requires = "image")]
    detach: bool,
    /// For those who are used to it: the console is on the terminal anyway
    #[arg(short, long, hide = true, requires = "image")]
    interactive: bool,
    /// As `interactive`
    #[arg(short, long, hide = true, requires = "image")]
    tty: bool,
    /// Boot a warm image instead of going on with its memory
    #[arg(long, requires = "image")]
    cold: bool,
    /// Remove the machine when it ends, although it has a name
    #[arg(long, requires = "image")]
    rm: bool,
    /// Set a variable of the environment; KEY alone gives it the value that it has here
    #[arg(short, long, value_name = "KEY=VALUE", requires = "image", value_parser = variable)]
    env: Vec<String>,
    /// Set the variables in a file: lines with KEY=VALUE; --env comes after it
    #[arg(long, value_name = "FILE", requires = "image")]
    env_file: Vec<PathBuf>,
    /// Name that the guest knows itself by [default: that of the machine]
    #[arg(short = 'h', long, value_name = "NAME", requires = "image")]
    hostname: Option<Name>,
    /// Let nothing be written to the root file system; /tmp and /run are in memory
    #[arg(long, requires = "image")]
    read_only: bool,
    /// Directory in which the command runs
    #[arg(short, long, value_name = "DIR", requires = "image")]
    workdir: Option<String>,
    /// Who runs the command: NAME or ID, perhaps with :GROUP
    #[arg(short, long, value_name = "USER", requires = "image")]
    user: Option<String>,
    /// The program, instead of the image's
    #[arg(long, value_name = "PROGRAM", requires = "image")]
    entrypoint: Option<String>,
    /// Signal that asks the command to end, instead of the image's: SIGINT, 2 [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL", requires = "image", value_parser = stop_signal)]
    stop_signal: Option<String>,
    /// Give the guest a disk and mount it: DISK:TARGET, DISK:TARGET:ro
    #[arg(short, long, value_name = "DISK:TARGET", requires = "image")]
    volume: Vec<Volume>,
    /// Publish a port of the guest on the host: [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]
    #[arg(short, long, value_name = "HOST:GUEST", requires = "image")]
    publish: Vec<Publish>,
    /// The command, instead of the image's; its arguments
    #[arg(last = true, value_name = "COMMAND", requires = "image")]
    command: Vec<String>,
}

impl Run {
    /// Runs an image, or boots a machine.
    pub fn run(self, common: &Common) -> Result<u8, Failure> {
        match &self.image {
            Some(image) if !self.misplaced.is_empty() => {
                let command = self.misplaced.join(" ");
                Err(Failure::usage(format!("A command stands behind `--`: rvmm run {image} -- {command}")))
            }
            Some(image) => {
                let store = store::open(common)?;
                let descriptor = store.resolve(image).map_err(Failure::usage)?;
                launch(&store, descriptor, self.container, self.machine, common)
            }
            None => run::run(self.machine, common),
        }
    }
}

/// A machine that is ready to live.
pub struct Prepared {
    pub store: Store,
    pub image: Descriptor,
    /// The kernel of another image.
    pub kernel: Option<Digest>,
    pub config: VmConfig,
    /// The memory and state with which it goes on.
    pub warm: Option<Restore>,
    pub name: Name,
    /// Its overlays are kept.
    pub kept: bool,
    /// The machine is this command's alone until it is known to run.
    pub lock: Option<InstanceLock>,
    pub grace: Duration,
    pub boot_timer: Option<BootTimer>,
}

impl Prepared {
    /// Lives until the machine ends. A lease keeps what it uses.
    pub fn live(self, ready: Option<Ready>, common: &Common) -> Result<u8, Failure> {
        let mut lease = self.store.lease().map_err(Failure::refused)?;
        let mut stands_on = StandsOn::new(&self.store, self.image, self.kernel);
        for digest in stands_on.held() {
            let is_there = lease.hold(digest).map_err(Failure::refused)?;
            if !is_there {
                return Err(Failure::usage("The image was removed meanwhile"));
            }
        }
        (stands_on.kept, stands_on.lease) = (self.kept, Some(lease.path().into()));
        let log = match self.kept {
            true => Some(self.store.instances_path().map_err(Failure::refused)?.join(self.name.as_str())),
            false => None,
        };
        let life = Life {
            name: Some(self.name),
            log,
            grace: self.grace,
            boot_timer: self.boot_timer,
            read_ahead: true,
            entered: Some(Box::new(move |directory: &Path| {
                stands_on.write(directory)?;
                drop(self.lock);
                Ok(())
            })),
            ready,
            // Others go on from the same moment: it is somebody else.
            new_identity: self.warm.is_some(),
            ..Life::default()
        };
        life.live(self.config, self.warm.as_ref(), common)
    }

    /// Lives in this process, or in one of its own.
    pub fn start(mut self, detach: bool, common: &Common) -> Result<u8, Failure> {
        if !detach {
            return self.live(None, common);
        }
        // Until the other process has a lease of its own.
        let mut lease = self.store.lease().map_err(Failure::refused)?;
        lease.hold(&self.image.digest).map_err(Failure::refused)?;
        if self.config.console == console::Config::default() {
            self.config.console = console::Config::Log;
        }
        let name = self.name.clone();
        let started = background::start(|ready| self.live(Some(ready), common))?;
        let pid = started.pid;
        started.wait().map_err(Failure::usage)?;
        match common.json {
            true => print_json(&json!({ "name": name.as_str(), "pid": pid }))?,
            false => print(name)?,
        }
        Ok(0)
    }
}

/// Makes a machine of an image and runs it.
pub fn launch(
    store: &Store,
    image: Descriptor,
    container: Container,
    mut machine: run::Args,
    common: &Common,
) -> Result<u8, Failure> {
    if machine.config.is_some() {
        return Err(Failure::usage("--config describes a whole machine: it does not go with an image"));
    }
    let boot_timer =
        machine.boot_timer.as_deref().map(BootTimer::create).transpose().map_err(Failure::usage)?;
    let mut lease = store.lease().map_err(Failure::refused)?;
    lease.hold(&image.digest).map_err(Failure::refused)?;
    let runnable = Runnable::open(store, &image, machine.kernel.as_ref())?;
    let keep = machine.name.is_some() && !container.rm;
    let name = machine.name.take().unwrap_or_else(Name::random);
    let saved = if container.cold { None } else { warm::open(store, &image, Mode::default())? };
    let overlay = store.instances_path().map_err(Failure::refused)?;
    let overlay = if keep { overlay.join(name.as_str()) } else { overlay };
    let base = runnable.machine(&overlay, keep);
    let (stop_timeout, detach) = (machine.stop_timeout, container.detach);
    let mut config = match &saved {
        Some(saved) => resumed(saved, base, container, machine)?,
        None => booted(&runnable, base, container, machine, &name)?,
    };
    allow(&mut config, stop_timeout);
    // It may be started from elsewhere.
    config.make_absolute();
    let lock =
        if keep { Some(record(store, &name, &image, runnable.kernel, &config, common)?) } else { None };
    let prepared = Prepared {
        store: store.clone(),
        image,
        kernel: runnable.kernel,
        config,
        warm: saved,
        name,
        kept: keep,
        lock,
        grace: Duration::from_secs(stop_timeout),
        boot_timer,
    };
    prepared.start(detach, common)
}

/// Has the init give its command as long as the machine has, in seconds, but for one in which its status is told.
pub fn allow(config: &mut VmConfig, stop_timeout: u64) {
    if let Some(process) = &mut config.boot_source.process {
        process["StopTimeout"] = stop_timeout.saturating_sub(1).max(1).into();
    }
}

/// Notes a machine that stays. Its name is this command's until the machine is known to run.
fn record(
    store: &Store,
    name: &Name,
    image: &Descriptor,
    kernel: Option<Digest>,
    config: &VmConfig,
    common: &Common,
) -> Result<InstanceLock, Failure> {
    let lock = store.lock_instance(name.as_str()).map_err(Failure::refused)?;
    if runs(common, name.as_str())? {
        return Err(Failure::usage(format!("A machine with the name `{name}` runs already")));
    }
    let created = rfc3339(SystemTime::now());
    let machine = serde_json::to_value(config).map_err(Failure::usage)?;
    let record = Record { image: image.clone(), first: 1, kernel, created, machine };
    store.create_instance(&lock, record).map_err(Failure::usage)?;
    Ok(lock)
}

/// A machine that boots, with what is to run in it.
fn booted(
    runnable: &Runnable,
    base: VmConfig,
    container: Container,
    mut machine: run::Args,
    name: &Name,
) -> Result<VmConfig, Failure> {
    let plain = container.is_plain();
    let Container { env, env_file, hostname, workdir, user, entrypoint, stop_signal, .. } = container;
    let Container { volume, publish: ports, command, interactive, detach, read_only, .. } = container;
    volume.iter().try_for_each(check_volume)?;
    if interactive && !detach {
        warn_of_piped_input();
    }
    let env = [variables(&env_file).map_err(Failure::usage)?, env].concat();
    machine.devices.block.extend(volume.iter().map(|volume| block::Config {
        path_on_host: volume.disk.clone(),
        is_read_only: volume.read_only,
        ..block::Config::default()
    }));
    let links = &mut machine.devices.net;
    if links.is_empty() && !ports.is_empty() {
        links.push(net::Config::user());
    }
    publish(links, ports)?;
    let mut config = run::configure(machine, Some(base))?;
    if config.boot_source.initrd_path.is_some() {
        let overrides = Overrides { env, working_dir: workdir, user, entrypoint, stop_signal, command };
        let process = overrides.over(runnable.config.config.clone());
        let tty = !detach && io::stdin().is_terminal();
        let hostname = hostname.as_ref().unwrap_or(name).as_str();
        let mut document = document(&process, &config, hostname, &volume, tty);
        document["ReadOnly"] = read_only.into();
        config.boot_source.process = Some(document);
    } else if !plain {
        return Err(Failure::usage(
            "Nobody in the guest would hear of a command, variables, names or disks to be mounted: the image or --kernel brings no initial RAM disk",
        ));
    }
    Ok(config)
}

impl Container {
    /// Nothing is asked that a running machine could not be given.
    fn is_plain(&self) -> bool {
        self.env.is_empty()
            && self.env_file.is_empty()
            && self.hostname.is_none()
            && !self.read_only
            && self.workdir.is_none()
            && self.user.is_none()
            && self.entrypoint.is_none()
            && self.stop_signal.is_none()
            && self.volume.is_empty()
            && self.command.is_empty()
    }
}

/// What goes on from a warm image, with the links, ports and console that are asked for.
fn resumed(
    saved: &Restore,
    base: VmConfig,
    container: Container,
    own: run::Args,
) -> Result<VmConfig, Failure> {
    if !(container.is_plain() && own.is_plain()) {
        return Err(Failure::usage(
            "A warm image goes on with the machine as it was: a command, variables, disks, CPUs and memory need --cold",
        ));
    }
    let mut config = warm::machine(saved, base)?;
    config.replace_links(&own.devices.net).map_err(Failure::usage)?;
    publish(&mut config.devices.net, container.publish)?;
    config.console = own.console.unwrap_or_default();
    Ok(config)
}

/// Publishes ports on the network that needs no privileges.
fn publish(interfaces: &mut [net::Config], ports: Vec<Publish>) -> Result<(), Failure> {
    if ports.is_empty() {
        return Ok(());
    }
    let user = interfaces.iter_mut().find_map(|interface| interface.user.as_mut());
    let user = user.ok_or_else(|| {
        Failure::usage("-p needs an interface with a network of kind user: leave --net out")
    })?;
    user.publish.extend(ports);
    Ok(())
}
