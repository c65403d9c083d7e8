//! `rvmm exec`: a command in a machine that runs.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use super::image::habits::variable;
use super::output::Failure;
use super::{Common, guest, machines};
use crate::agent::{self, Control, Event, Running, Size};
use crate::sys::signals::{self, Signals};
use crate::sys::terminal;

/// The guest has no such program, or may not run it: what shells say, too.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

// Options of `exec`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm exec web uname -a
  rvmm exec -it web sh
  rvmm exec -e LANG=C -w /srv -u www web -- ls -l
  echo hello | rvmm exec -i web sh -c 'cat >/root/hello'

The command ends with the guest's status, or 128 and the number of the signal that ended it; 127 when the guest has no such \
program, 126 when it may not run it, 125 when the guest could not be asked. rvmm-agent must run in the \
guest; one that does not answer yet is waited for until the machine has been there for 30 s.")]
pub struct Args {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable of its environment; KEY alone gives it the value that it has here
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// The directory in the guest that it runs in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The guest's user that it runs as, with a group if that is another one [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The machine, as `rvmm ps` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a command; returns its status.
pub fn run(args: Args, common: &Common) -> Result<u8, Failure> {
    let machine = machines::one(common, &args.name).map_err(|failure| Failure::usage(failure.error))?;
    let screen = io::stdout();
    if args.tty && !terminal::is_terminal(screen.as_fd()) {
        return Err(Failure::usage("With -t standard output must be a terminal"));
    }
    let size = || {
        let (rows, columns) = terminal::size(screen.as_fd()).unwrap_or((24, 80));
        Size { rows, columns }
    };
    let pairs = args.env.iter().filter_map(|set| set.split_once('='));
    let mut env: BTreeMap<String, String> = pairs.map(|(name, value)| (name.into(), value.into())).collect();
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".into()).or_insert(term);
    }
    let command = agent::Command {
        argv: args.command,
        env,
        directory: args.workdir,
        user: args.user,
        terminal: args.tty.then(size),
    };
    let client = guest::connect(&machine)?;
    // Before any thread starts, so that every thread inherits the mask.
    let signals = Signals::new(signals::PASSED_ON).map_err(Failure::usage)?;
    let running = client.exec(&command).map_err(|error| Failure {
        status: match &error {
            agent::Error::Refused { errno: Some(libc::ENOENT), .. } => NOT_FOUND,
            agent::Error::Refused { errno: Some(libc::EACCES | libc::ENOEXEC), .. } => NOT_EXECUTABLE,
            _ => super::exit::USAGE,
        },
        error: error.into(),
    })?;
    if args.tty && args.interactive && terminal::is_terminal(io::stdin().as_fd()) {
        terminal::make_raw(io::stdin().as_fd()).map_err(Failure::usage)?;
    }
    let control = running.control();
    match args.interactive {
        true => drop(thread::spawn(move || pass_on_input(&control))),
        // A command that has ended already needs none.
        false => drop(control.end_input()),
    }
    let (control, tty) = (running.control(), args.tty);
    thread::spawn(move || pass_on_signals(&signals, &control, tty));
    let status = show(running);
    terminal::restore();
    status
}

/// Shows what the command says, until its end.
fn show(mut running: Running) -> Result<u8, Failure> {
    let (mut output, mut error) = (io::stdout(), io::stderr());
    loop {
        let written = match running.event().map_err(Failure::usage)? {
            Event::Output(bytes) => output.write_all(bytes).and_then(|()| output.flush()),
            Event::ErrorOutput(bytes) => error.write_all(bytes),
            Event::End(end) => return Ok(end.status()),
        };
        match written {
            // Whoever read has read enough; the command is told by the end of the connection.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(128 + libc::SIGPIPE as u8),
            Err(error) => return Err(Failure::usage(format!("Cannot write the command's output: {error}"))),
            Ok(()) => {}
        }
    }
}

fn pass_on_input(control: &Control) {
    let (mut stdin, mut piece) = (io::stdin().lock(), [0; 16 << 10]);
    loop {
        match stdin.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(count @ 1..) if control.input(&piece[..count]).is_ok() => {}
            _ => break,
        }
    }
    let _ = control.end_input();
}

/// Signals to this process are meant for the command.
fn pass_on_signals(signals: &Signals, control: &Control, tty: bool) {
    while let Ok(signal) = signals.wait() {
        let passed = match signal {
            libc::SIGWINCH if !tty => continue,
            libc::SIGWINCH => match terminal::size(io::stdout().as_fd()) {
                Some((rows, columns)) => control.resize(Size { rows, columns }),
                None => continue,
            },
            signal => control.signal(signal),
        };
        match passed {
            Ok(true) => {}
            // The command does not take its input, so the signal cannot reach it behind that: the end of the connection does.
            _ if signal == libc::SIGWINCH => {}
            _ => {
                terminal::restore();
                std::process::exit(128 + signal)
            }
        }
    }
}
