//! `rvmm attach`: a terminal for the console of a machine in the background.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use super::Common;
use super::machines;
use super::output::Failure;
use crate::console::{self, Escapes};
use crate::sys::{socket, terminal};

const HELP: &[u8] = b"\r\n  Ctrl-A d   leave; the machine runs on\r\n  \
    Ctrl-A h   this help\r\n  Ctrl-A Ctrl-A   send Ctrl-A to the guest\r\n";

// Options of `attach`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm clone snap1 --name web
  rvmm attach web-1

Ctrl-A d leaves the console, and the machine runs on; Ctrl-A h shows the keys. A second client takes the console from the \
first. `rvmm logs` shows what was said before.")]
pub struct Args {
    /// The machine, as `rvmm ps` names it
    #[arg(value_name = "NAME")]
    name: String,
}

/// Connects this terminal with a console until either side leaves.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let machine = machines::one(common, &args.name)?;
    let refused = |reason: &str| Failure::refused(format!("Cannot attach to {}: {reason}", machine.name));
    let stream = match machines::config(&machine)?.console {
        console::Config::Log => socket::connect(&machine.directory().join(console::SOCKET)),
        console::Config::Socket(path) => socket::connect(&path),
        console::Config::Stdio => return Err(refused("its console is on the terminal it was started at")),
        console::Config::Pty => {
            return Err(refused("its console is a terminal, whose path was told at its start"));
        }
        console::Config::Off | console::Config::File(_) => {
            return Err(refused("its console takes no input: start the machine with --console log"));
        }
    };
    let mut stream = stream.map_err(|error| refused(&error.to_string()))?;
    let keys = stream.try_clone().map_err(Failure::refused)?;
    let is_terminal = terminal::is_terminal(io::stdin().as_fd());
    if is_terminal {
        terminal::make_raw(io::stdin().as_fd()).map_err(Failure::refused)?;
    }
    thread::spawn(move || type_on(keys, Escapes::new(is_terminal)));
    let shown = show(&mut stream);
    terminal::restore();
    match shown {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(refused(&error.to_string())),
        _ => Ok(0),
    }
}

fn show(stream: &mut UnixStream) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => out.write_all(&piece[..count]).and_then(|()| out.flush())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The machine has ended.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// What a key after `Ctrl-A` asks for.
#[derive(PartialEq)]
enum Command {
    Leave,
    Help,
}

impl Command {
    fn of(key: u8) -> Option<Self> {
        match key {
            b'd' | b'D' => Some(Command::Leave),
            b'h' | b'H' | b'?' => Some(Command::Help),
            _ => None,
        }
    }
}

/// Gives the guest what is typed. The end of input that is no terminal leaves the console open: the guest may still speak.
fn type_on(mut stream: UnixStream, mut escapes: Escapes) {
    let mut stdin = io::stdin().lock();
    let (mut keys, mut guest) = ([0; 4096], Vec::new());
    while let Ok(count @ 1..) = stdin.read(&mut keys) {
        guest.clear();
        let commands = escapes.filter(&keys[..count], &mut guest, Command::of);
        if commands.contains(&Command::Help) {
            let _ = io::stderr().write_all(HELP);
        }
        if stream.write_all(&guest).is_err() {
            return;
        }
        if commands.contains(&Command::Leave) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}
