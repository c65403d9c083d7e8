//! `rvmm restore`: go on with a machine that was saved.

use std::path::PathBuf;
use std::time::Duration;

use super::Common;
use super::boot_timer::BootTimer;
use super::life::Life;
use super::output::Failure;
use super::replace::{Marks, Replacements};
use crate::api::name::Name;
use crate::console;
use crate::vmm::snapshot::Restore;

/// Options of `restore`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot create web snap1
  rvmm restore snap1 --name web2
  rvmm restore snap1 --net tap=tap7 --disk vdb=/data/other.img
  rvmm restore snap1 --rename tap0=tap7 --rename /old/images=/images

The machine has its memory copy-on-write from the snapshot, which stays as it is: it can be restored any number of
times. It gets a new generation identifier, so that its kernel makes new random numbers, and the right time. Its interfaces
keep their addresses unless a machine that runs here has them.")]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
    /// Name of the machine, as `rvmm ps` shows it
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    #[command(flatten)]
    replacements: Replacements,
    /// Leave the machine paused, `rvmm resume` lets it go on
    #[arg(long)]
    paused: bool,
    /// Where the serial console is: stdio, off, file=PATH, pty, socket=PATH, or log for `rvmm logs` and `attach`
    #[arg(long, value_name = "PLACE", default_value = "stdio")]
    console: console::Config,
    /// How long a guest may take to switch itself off when it is asked to
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    stop_timeout: u64,
    /// Write when the machine first ran again and when the guest reached each milestone, as `rvmm run` does
    #[arg(long, value_name = "FILE")]
    boot_timer: Option<PathBuf>,
}

/// Restores a machine and stays until it ends.
pub fn run(args: Args, common: &Common) -> Result<u8, Failure> {
    let boot_timer = args.boot_timer.as_deref().map(BootTimer::create).transpose().map_err(Failure::usage)?;
    let restore = Restore::open(&args.snapshot).map_err(Failure::usage)?;
    let mut config = restore.config().clone();
    config.console = args.console;
    args.replacements.apply(&mut config, &Marks(&[]))?;
    let grace = Duration::from_secs(args.stop_timeout);
    let life = Life { name: args.name, grace, paused: args.paused, boot_timer, ..Life::default() };
    life.live(config, Some(&restore), common)
}
