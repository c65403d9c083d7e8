//! `rvmm pull`, `push`, `login` and `logout`: their options. What they do is a program of its own, which rvmm becomes: the
//! program that runs machines carries no HTTP client and no TLS.

#[cfg(feature = "registry")]
pub mod program;

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;

use super::image::import::disk_size;
use super::output::Failure;
use crate::image::Name;

/// The program, which lies beside rvmm.
const PROGRAM: &str = "rvmm-registry";

// The commands; as in `super::Command`, the options of each are made when it is the one that is wanted.
#[derive(clap::Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Fetch an image from a registry: only what is not here yet
    Pull(Pull),
    /// Send an image to a registry: only what it has not yet
    Push(Push),
    /// Tell a registry who you are, and keep that
    Login(Login),
    /// Forget who you are to a registry
    Logout(Logout),
}

// How a registry is spoken to.
#[derive(clap::Args)]
pub struct Connection {
    /// Speak to the registry without TLS; registries on this machine need no such word
    #[arg(long)]
    plain_http: bool,
}

// Options of `pull`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm pull registry.example.org/team/web:1
  rvmm pull docker.io/library/alpine:3 --as alpine:3
  rvmm pull localhost:5000/team/web@sha256:... --as web:pinned

Layers that are here already are not fetched again, and a pull that broke off goes on where it ended. An image of containers \
becomes the image of a machine; its own layers stay until `rvmm gc`.")]
pub struct Pull {
    /// The image: REGISTRY/REPO[:TAG], or with @DIGEST instead of a tag
    #[arg(value_name = "REGISTRY/REPO:TAG")]
    image: String,
    /// The name that it gets here [default: its whole name]
    #[arg(long = "as", value_name = "REPO:TAG")]
    name: Option<Name>,
    /// The size of the disk that an image of containers gets: 512M, 8G [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = disk_size)]
    size: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

// Options of `push`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm push web:1 registry.example.org/team/web:1
  rvmm push localhost:5000/team/web:1          the image that has this name here

Only layers that the registry has not yet are sent, and a push that broke off goes on where it ended. A warm image carries the \
memory of its machine with all secrets in it.")]
pub struct Push {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where it goes [default: where its name says]
    #[arg(value_name = "REGISTRY/REPO:TAG")]
    target: Option<Name>,
    #[command(flatten)]
    connection: Connection,
}

// Options of `login`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm login registry.example.org -u me
  pass show registry | rvmm login registry.example.org -u me --password-stdin

What the registry accepts is kept in $XDG_CONFIG_HOME/rvmm/registries.json, for you alone and not encrypted. Logins of Docker \
(~/.docker/config.json, with its credential helpers) are used as well and need no login here.")]
pub struct Login {
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// The user
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    connection: Connection,
}

// Options of `logout`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  rvmm logout registry.example.com")]
pub struct Logout {
    /// The registry: HOST[:PORT]
    #[arg(value_name = "REGISTRY")]
    registry: String,
}

/// Does what the command line asks for, by becoming the program that can: the process, its terminal and its signals stay, the exit
/// status is that program's. Comes back only with why it could not: that program is not there or does not run.
pub fn hand_over() -> Failure {
    let program = match std::env::current_exe() {
        Ok(rvmm) => rvmm.with_file_name(PROGRAM),
        Err(error) => return Failure::usage(format!("Cannot find {PROGRAM} beside rvmm: {error}")),
    };
    let error = std::process::Command::new(&program).args(std::env::args_os().skip(1)).exec();
    let program = program.display();
    Failure::usage(match error.kind() {
        ErrorKind::NotFound => format!(
            "Registries need {program}, which is not there: install {PROGRAM} beside rvmm (`cargo build --release` makes both)"
        ),
        _ => format!("Cannot run {program}: {error}"),
    })
}
