//! `rvmm logs`: what guests said on their consoles.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::image::stands_on::StandsOn;
use super::image::start;
use super::output::Failure;
use super::{Common, machines, store};
use crate::api::runtime::Machine;
use crate::console::{self, log};
use crate::image::Instance;

/// How often a log that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

// Options of `logs`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm logs web
  rvmm logs -f web
  rvmm logs -n 20 web

The log of a machine in the background has what its console said, the last 1 to 2 MiB of it. A machine that stays when it ends keeps \
its log until `rvmm rm`, and goes on with it when it is started again; of others it goes with the machine. A machine started with \
--console file=PATH keeps all of it there.")]
pub struct Args {
    /// The machine, as `rvmm ps -a` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with what is said from now on, until the machine ends
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last lines only: so many
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
}

/// The last bytes that are written to it.
#[derive(Default)]
struct Last(Vec<u8>);

impl Last {
    /// Bytes of lines that are shown at most: as many as a log has. What somebody keeps in a file of their own may have more.
    const MOST: usize = 2 << 20;

    /// The last lines. What follows the last end of a line is one, too.
    fn lines(&self, count: usize) -> &[u8] {
        let ended = self.0.strip_suffix(b"\n").unwrap_or(&self.0);
        let mut ends = (0..ended.len()).rev().filter(|&at| ended[at] == b'\n');
        match count {
            0 => &[],
            _ => &self.0[ends.nth(count - 1).map_or(0, |at| at + 1)..],
        }
    }
}

impl Write for Last {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * Last::MOST {
            self.0.drain(..self.0.len() - Last::MOST);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log, in whatever files.
enum Log {
    Kept(log::Reader),
    File(File),
}

impl Log {
    /// Copies what has come since the last time.
    fn copy(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Log::Kept(reader) => reader.copy(out),
            Log::File(file) => io::copy(file, out).and_then(|_| out.flush()),
        }
    }

    /// That of a machine that runs.
    fn of(machine: &Machine) -> Result<Self, Failure> {
        match machines::config(machine)?.console {
            console::Config::Log => {
                let kept = StandsOn::read(machine.directory()).and_then(|on| on.instance(&machine.name));
                Ok(Log::Kept(log::Reader::new(kept.as_deref().unwrap_or(machine.directory()))))
            }
            console::Config::File(path) => open(&path).map(Log::File),
            _ => Err(Failure::refused(format!(
                "The console of {} is not kept: start the machine with --console log or --console file=PATH",
                machine.name
            ))),
        }
    }

    /// That of a machine that has ended and stays.
    fn of_stopped(found: &Instance) -> Result<Self, Failure> {
        if found.path().join(log::FILE).exists() {
            return Ok(Log::Kept(log::Reader::new(found.path())));
        }
        match serde_json::from_value(found.record.machine["console"].clone()) {
            Ok(console::Config::File(path)) => open(&path).map(Log::File),
            _ => Err(Failure::refused(format!(
                "`{0}` does not run, and of its console nothing is kept: `rvmm start {0}` starts it in the background, with a log",
                found.name
            ))),
        }
    }
}

/// The instance with this name in the user's store.
fn stopped(name: &str, common: &Common) -> Result<Option<Instance>, Failure> {
    let Some(store) = store::existing(common)? else { return Ok(None) };
    match store.instance_names().map_err(Failure::refused)?.iter().any(|known| known == name) {
        true => start::instance(&store, name).map(Some),
        false => Ok(None),
    }
}

/// Prints the log of a machine.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let running = machines::all(common)?.into_iter().find(|machine| machine.name == args.name);
    let (mut log, running) = match running {
        Some(machine) => (Log::of(&machine)?, Some(machine)),
        None => match stopped(&args.name, common)? {
            Some(found) => (Log::of_stopped(&found)?, None),
            // Or it has just begun.
            None => machines::one(common, &args.name)
                .and_then(|machine| Log::of(&machine).map(|log| (log, Some(machine))))?,
        },
    };
    let mut tail = args.tail;
    loop {
        let gone = running.as_ref().is_none_or(Machine::is_gone);
        let mut out = io::stdout().lock();
        let copied = match tail.take() {
            Some(count) => {
                let mut last = Last::default();
                let copied = log.copy(&mut last);
                copied.and_then(|()| out.write_all(last.lines(count))).and_then(|()| out.flush())
            }
            None => log.copy(&mut out),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        let last = |text: &str, count| {
            let mut last = Last::default();
            last.write_all(text.as_bytes()).unwrap();
            String::from_utf8(last.lines(count).to_vec()).unwrap()
        };
        assert_eq!(
            [0, 1, 2, 3, 9].map(|count| last("a\nb\n\n", count)),
            ["", "\n", "b\n\n", "a\nb\n\n", "a\nb\n\n"]
        );
        assert_eq!([0, 1, 2].map(|count| last("a\nb", count)), ["", "b", "a\nb"]);
        assert_eq!([last("", 1), last("\n", 1), last("a", 1)], ["", "\n", "a"]);
        let mut long = Last::default();
        for number in 0..Last::MOST {
            writeln!(long, "{number}").unwrap();
        }
        assert!(long.0.len() <= 2 * Last::MOST);
        let end = format!("{}\n{}\n", Last::MOST - 2, Last::MOST - 1);
        assert_eq!(long.lines(2), end.as_bytes());
    }
}
