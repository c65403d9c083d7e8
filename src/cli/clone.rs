//! `rvmm clone`: many new machines from one snapshot, from one that runs, or from a warm image.
//!
//! The source is opened and checked once. Then this process, which has one thread, forks for each machine: a child finds all
//! in memory, opens KVM, and tells its parent through a pipe when it runs, or why not.

mod source;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::warn;
use serde_json::{Value, json};

use super::image::stands_on::StandsOn;
use super::life::{Life, Ready};
use super::output::{Failure, complain, print, print_json};
use super::progress::Bar;
use super::replace::{Marks, Replacements};
use super::restore::memory_mode;
use super::run::STOP_TIMEOUT;
use super::{Common, background, exit};
use crate::api::name::Name;
use crate::config::VmConfig;
use crate::console;
use crate::memory::image::Mode;
use crate::sys::host;
use crate::vmm::chain;
use source::Source;

/// Machines that are started at the same time.
const AT_ONCE: usize = 8;

/// What the host has less when there is one more clone that does nothing, page tables and the kernel's own memory included.
const LEAST_MIB: u64 = 1;

// Options of `clone`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm clone web                             a machine that runs
  rvmm snapshot create web snap1
  rvmm clone snap1 -n 10 --name worker
  rvmm clone snap1 -n 10 --net tap=tap%i --console file=%n.log
  rvmm clone nginx:warm -n 1000              instances of an image that has memory (rvmm commit --warm)
  rvmm ps
  rvmm stop --all

Clones run in the background and share memory and disks with the snapshot or image until they write. Each has a generation \
identifier of its own, so that its kernel makes other random numbers than the others, and new addresses for its network \
interfaces. Where rvmm-agent runs in the guest, it has set hostname (the machine's name), machine id, clock and these addresses \
and mixed in fresh random numbers before a clone counts as running. In --net, --disk, --rename and --console, %n stands for a \
machine's name and %i for its number.")]
pub struct Args {
    /// A snapshot, a machine that runs, as `rvmm ps` names it, or a warm image
    #[arg(value_name = "DIR|NAME|IMAGE")]
    source: PathBuf,
    /// Where a snapshot that it stands on is now, if it is not where it was
    #[arg(long, value_name = "DIR")]
    base: Vec<PathBuf>,
    /// How many machines
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Begin of their names, which a number follows [default: the source's name]
    #[arg(long, value_name = "PREFIX")]
    name: Option<String>,
    #[command(flatten)]
    replacements: Replacements,
    /// Where the serial consoles are: log for `rvmm logs` and `attach`, off, pty, or file=PATH and socket=PATH
    #[arg(long, value_name = "PLACE", default_value = "log")]
    console: console::Config,
    /// How they get their memory: cow, mapped from the snapshot until it is written; copy, read at once; lazy or
    /// lazy=SOCKET, read when it is used and in the background
    #[arg(long, value_name = "HOW", default_value = "cow", value_parser = memory_mode)]
    memory_mode: Mode,
    /// Leave the machines paused, `rvmm resume` lets them go on
    #[arg(long)]
    paused: bool,
}

impl Args {
    /// The file or socket that would be the console of every machine. A device, as /dev/null, may be.
    fn one_console(&self) -> Option<&Path> {
        let (console::Config::File(path) | console::Config::Socket(path)) = &self.console else {
            return None;
        };
        let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device());
        let marked = path.to_str().is_some_and(|text| text.contains("%n") || text.contains("%i"));
        (!marked && !is_device).then_some(path)
    }
}

/// Starts the machines and returns when all run.
pub fn run(args: Args, common: &Common) -> Result<u8, Failure> {
    let room = host::memory_mib() / LEAST_MIB;
    if u64::from(args.count) > room {
        let text = format!(
            "{} machines have no room: this host has memory for {room}, if they do nothing",
            args.count
        );
        return Err(Failure::usage(text));
    }
    if args.count > 1 && args.replacements.fixes_address() {
        return Err(Failure::usage("Only one machine can have the address that `--net` gives with `mac`"));
    }
    if let Some(path) = args.one_console().filter(|_| args.count > 1) {
        let path = path.display();
        let text = format!(
            "Only one machine can have the console {path}: say %n for a machine's name or %i for its number in it"
        );
        return Err(Failure::usage(text));
    }
    let source = Source::open(&args, common)?;
    let prefix = args.name.as_ref().unwrap_or(&source.prefix);
    let names = (1..=args.count).map(|number| Ok((number, format!("{prefix}-{number}").parse::<Name>()?)));
    let names = names.collect::<Result<Vec<_>, crate::api::name::Error>>();
    let names = names.map_err(|error| match args.name {
        Some(_) => Failure::usage(error),
        None => Failure::usage(format!("{error}; --name gives another one")),
    })?;
    // What none of them can have is said once.
    if let Some((number, name)) = names.first() {
        let config = configure(*number, name, &args, &source)?;
        source.restore.check_user_disks(&config).map_err(Failure::usage)?;
    }
    let start = Instant::now();
    let Started { machines, left_undone, failed } = start_all(&names, &args, &source, common);
    let elapsed = start.elapsed();
    drop(source);
    // Most likely it is the same for all: it is said once.
    match &left_undone[..] {
        [] => {}
        [only] => warn!("{only}"),
        [first, others @ ..] => warn!("{first} (and so for {} more)", others.len()),
    }
    if common.json {
        print_json(
            &json!({ "machines": machines, "failed": failed, "elapsed_us": elapsed.as_micros() as u64 }),
        )?;
    } else {
        print(format!("{} machines run after {:.1} ms", machines.len(), elapsed.as_secs_f64() * 1e3))?;
    }
    Ok(if failed == 0 { 0 } else { exit::REFUSED })
}

/// What became of all.
#[derive(Default)]
struct Started {
    machines: Vec<Value>,
    left_undone: Vec<String>,
    failed: u32,
}

/// Starts the machines, some at a time. The failure of one is said and does not hurt the others.
fn start_all(names: &[(u32, Name)], args: &Args, source: &Source, common: &Common) -> Started {
    let mut all = Started::default();
    let bar = Bar::new(common);
    let mut under_way = VecDeque::new();
    let mut waiting = names.iter();
    loop {
        while under_way.len() < AT_ONCE
            && let Some((number, name)) = waiting.next()
        {
            let started = background::start(|ready| live(*number, name.clone(), args, source, ready, common));
            under_way.push_back((name, started));
        }
        let Some((name, started)) = under_way.pop_front() else { return all };
        let started = started.map_err(|failure| chain(failure.error.as_ref()));
        match started.and_then(|started| Ok((started.pid, started.wait()?))) {
            Ok((pid, untold)) => {
                all.left_undone.extend(untold.map(|untold| format!("{name}: {untold}")));
                all.machines.push(json!({ "name": name.as_str(), "pid": pid }));
            }
            Err(reason) => {
                bar.iter().for_each(Bar::clear);
                complain(common.json, exit::REFUSED, &format!("{name}: {reason}"));
                all.failed += 1;
            }
        }
        bar.iter()
            .for_each(|bar| bar.say(|| format!("{} of {} machines run", all.machines.len(), names.len())));
    }
}

/// What is to be made of the source for one machine.
fn configure(number: u32, name: &Name, args: &Args, source: &Source) -> Result<VmConfig, Failure> {
    let mut config = source.config.clone();
    let number = number.to_string();
    let marks = Marks(&[("%n", name.as_str()), ("%i", &number)]);
    config.console = marks.console(&args.console);
    args.replacements.apply(&mut config, &marks)?;
    // Each has a channel of its own, unless it got one.
    for (vsock, saved) in config.devices.vsock.iter_mut().zip(&source.config.devices.vsock) {
        vsock.uds_path = vsock.uds_path.take().filter(|path| Some(path) != saved.uds_path.as_ref());
    }
    Ok(config)
}

/// The whole life of a clone.
fn live(
    number: u32,
    name: Name,
    args: &Args,
    source: &Source,
    ready: Ready,
    common: &Common,
) -> Result<u8, Failure> {
    source.leave_to_parent();
    let config = configure(number, &name, args, source)?;
    let (entered, _lease) = source.stands_on(&config, common).map(StandsOn::enter).unzip();
    let life = Life {
        name: Some(name),
        grace: Duration::from_secs(STOP_TIMEOUT),
        start_paused: args.paused,
        // The others find it read. The snapshot of a machine that runs is new in the cache, and is removed.
        read_ahead: number == 1 && source.stays(),
        new_identity: true,
        entered,
        ready: Some(ready),
        ..Life::default()
    };
    life.live(config, Some(&source.restore), common)
}
