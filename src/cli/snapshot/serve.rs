//! `rvmm snapshot serve`: the memory of a snapshot for machines that have only its small files.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use log::warn;
use serde_json::json;

use super::super::Common;
use super::super::output::{Failure, print, print_json};
use crate::memory::image::{self, Chain};
use crate::snapshot::bundle::Bundle;
use crate::sys::socket::Listener;

/// Time between two attempts when the host gives no descriptor or no thread for a client.
const PAUSE: Duration = Duration::from_millis(100);

// Options of `snapshot serve`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm snapshot serve /srv/snap1 /run/snap1.sock
  rvmm restore snap1 --memory-mode lazy=/run/snap1.sock

The restored snap1 is a copy of /srv/snap1, which may lack its large file `memory`. What is served is the guest's memory with all \
secrets in it: only you can connect. The socket may lead to another host, for example with `ssh -L`. It serves until a \
signal ends it.")]
pub struct Serve {
    /// The snapshot
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,
    /// The Unix socket to be made
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
}

/// Serves for ever.
pub fn run(args: &Serve, common: &Common) -> Result<u8, Failure> {
    let Serve { snapshot, socket } = args;
    let bundle = Bundle::open(snapshot).map_err(Failure::usage)?;
    let chain = bundle.memory(&[], true).map_err(Failure::usage)?;
    let listener = Listener::bind(socket)
        .map_err(|error| Failure::usage(format!("Cannot listen on {}: {error}", socket.display())))?;
    match common.json {
        true => {
            print_json(&json!({ "path": snapshot.to_string_lossy(), "socket": socket.to_string_lossy() }))?
        }
        false => print(format!("serving {} on {}", snapshot.display(), socket.display()))?,
    }
    loop {
        let accepted = listener.accept().and_then(|(client, _)| answer(&chain, client));
        if let Err(error) = accepted {
            // Machines wait for what is served: those that are here already go on.
            warn!("a client finds no room: {error}");
            thread::sleep(PAUSE);
        }
    }
}

/// Answers a client on a thread of its own.
fn answer(chain: &Chain, client: UnixStream) -> io::Result<()> {
    let chain = chain.clone();
    let serve = move || {
        if let Err(error) = image::serve(&chain, &client) {
            warn!("a client is left: {error}");
        }
    };
    thread::Builder::new().name("client".into()).spawn(serve).map(drop)
}
