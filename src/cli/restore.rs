//! `rvmm restore`: go on with a machine that was saved.

use std::path::PathBuf;
use std::time::Duration;

use super::Common;
use super::boot_timer::BootTimer;
use super::image::stands_on::StandsOn;
use super::life::Life;
use super::output::Failure;
use super::progress::Bar;
use super::replace::{Marks, Replacements};
use super::run::{STOP_TIMEOUT, seconds};
use crate::api::name::Name;
use crate::console;
use crate::image::Step;
use crate::memory::image::Mode;
use crate::options;
use crate::vmm::snapshot::{Progress, Restore};

// Options of `restore`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot create web snap1
  rvmm restore snap1 --name web2
  rvmm restore snap1 --net tap=tap7 --disk vdb=/data/other.img
  rvmm restore snap1 --rename tap0=tap7 --rename /old/images=/images
  rvmm restore --foreign download --net none

The machine has its memory copy-on-write from the snapshot, which stays as it is: it can be restored any number of \
times. It gets a new generation identifier, so that its kernel makes new random numbers, and the right time. Its interfaces \
keep their addresses unless a machine that runs here has them. Where rvmm-agent runs in the guest, it sets the clock and mixes in \
fresh random numbers, and with --name it makes another machine of it: hostname and machine id.

Of the host it has what the snapshot names: kernel, disks that it only reads, taps, sockets, ports. With --foreign it has nothing of \
that: say so for a snapshot of somebody else.")]
pub struct Args {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
    /// Where a snapshot that it stands on is now, if it is not where it was
    #[arg(long, value_name = "DIR")]
    base: Vec<PathBuf>,
    /// Name of the machine, as `rvmm ps` shows it
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    #[command(flatten)]
    replacements: Replacements,
    /// How it gets its memory: cow, mapped from the snapshot until it is written; copy, read at once, so that the snapshot
    /// is not needed any more; lazy, read when it is used and in the background; lazy=SOCKET, the same from `snapshot serve`
    #[arg(long, value_name = "HOW", default_value = "cow", value_parser = memory_mode)]
    memory_mode: Mode,
    /// Leave the machine paused, `rvmm resume` lets it go on
    #[arg(long)]
    paused: bool,
    /// Where the serial console is: stdio, off, file=PATH, pty, socket=PATH, or log for `rvmm logs` and `attach`
    #[arg(long, value_name = "PLACE", default_value = "stdio")]
    console: console::Config,
    /// How long a guest may take to switch itself off when it is asked to (SIGTERM, SIGINT, `rvmm stop`); a second signal ends
    /// the machine at once
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT, value_parser = seconds)]
    stop_timeout: u64,
    /// Write when the machine first ran again and when the guest reached each milestone, as `rvmm run` does
    #[arg(long, value_name = "FILE")]
    boot_timer: Option<PathBuf>,
}

/// `cow`, `copy`, `lazy` or `lazy=SOCKET`.
pub fn memory_mode(text: &str) -> Result<Mode, options::Error> {
    match text {
        "cow" => Ok(Mode::Cow),
        "copy" => Ok(Mode::Copy),
        "lazy" => Ok(Mode::Lazy(None)),
        _ => match text.strip_prefix("lazy=") {
            Some(socket) if !socket.is_empty() => Ok(Mode::Lazy(Some(socket.into()))),
            _ => Err(options::bad_value("memory-mode", text, "cow, copy, lazy or lazy=SOCKET")),
        },
    }
}

/// Restores a machine and stays until it ends.
pub fn run(args: Args, common: &Common) -> Result<u8, Failure> {
    let boot_timer = args.boot_timer.as_deref().map(BootTimer::create).transpose().map_err(Failure::usage)?;
    let restore = Restore::open_on(&args.snapshot, args.memory_mode, &args.base).map_err(Failure::usage)?;
    let restore = restore.with_progress(Bar::new(common).map(|bar| -> Progress {
        Box::new(move |done, total| match done < total {
            true => bar.show(&Step { doing: "reading memory", done, total: Some(total) }),
            // Before the guest writes there.
            false => bar.clear(),
        })
    }));
    let mut config = restore.config().clone();
    config.console = args.console;
    args.replacements.apply(&mut config, &Marks(&[]))?;
    let grace = Duration::from_secs(args.stop_timeout);
    let (entered, _lease) = StandsOn::of(&restore, &config, common).map(StandsOn::enter).unzip();
    let life = Life {
        name: args.name,
        grace,
        start_paused: args.paused,
        read_ahead: true,
        boot_timer,
        entered,
        ..Life::default()
    };
    life.live(config, Some(&restore), common)
}
