//! `rvmm logs`: what guests said on their consoles.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::Common;
use super::machines;
use super::output::Failure;
use crate::console::{self, log};

/// How often a log that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

// Options of `logs`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm logs web
  rvmm logs -f web

The log of a machine in the background has what its console said, the last 1 to 2 MiB of it. It goes with the machine; a
machine started with --console file=PATH keeps all of it there.")]
pub struct Args {
    /// The machine, as `rvmm ps` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with what is said from now on, until the machine ends
    #[arg(short, long)]
    follow: bool,
}

/// The log, in whatever files.
enum Log {
    Kept(log::Reader),
    File(File),
}

/// Prints the log of a machine.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let machine = machines::one(common, &args.name)?;
    let mut log = match machines::config(&machine)?.console {
        console::Config::Log => Log::Kept(log::Reader::new(machine.directory())),
        console::Config::File(path) => Log::File(open(&path)?),
        _ => {
            let name = &machine.name;
            return Err(Failure::refused(format!(
                "The console of {name} is not kept: start the machine with --console log or --console file=PATH"
            )));
        }
    };
    loop {
        let gone = machine.is_gone();
        let mut out = io::stdout().lock();
        let copied = match &mut log {
            Log::Kept(reader) => reader.copy(&mut out),
            Log::File(file) => io::copy(file, &mut out).and_then(|_| io::Write::flush(&mut out)),
        };
        match copied {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            Err(error) => return Err(Failure::refused(format!("Cannot read the log on: {error}"))),
            Ok(()) if !args.follow || gone => return Ok(0),
            Ok(()) => {}
        }
        drop(out);
        thread::sleep(INTERVAL);
    }
}

fn open(path: &PathBuf) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::refused(format!("Cannot open {}: {error}", path.display())))
}
