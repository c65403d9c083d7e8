//! The command line: one file for each family of commands. Only here does the program print, exit and read its
//! environment.

mod attach;
mod background;
mod boot_timer;
mod clone;
mod cp;
mod doctor;
mod end;
mod exec;
mod exit;
mod guest;
mod identity;
mod image;
mod inspect;
mod kernel;
mod life;
mod logger;
mod logs;
mod machines;
mod output;
mod pause;
mod progress;
mod ps;
mod registry;
mod replace;
mod restore;
mod run;
mod shell;
mod snapshot;
mod stop;
mod store;
mod table;
mod usage;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::sys::signals;
use output::Failure;

#[cfg(feature = "registry")]
pub use registry::program::main as registry_main;
pub use run::CMDLINE;

/// Runs virtual machines as easily as containers
///
/// The bare form boots a machine in the foreground: rvmm --kernel vmlinuz --disk rootfs.ext4
#[derive(Parser)]
#[command(version, max_term_width = 100)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", exit::HELP))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    run: run::Args,
}

/// What a variable of the environment says, if it is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

// Options of every command.
#[derive(clap::Args)]
struct Common {
    /// Print machine-readable JSON, errors too
    #[arg(long, global = true)]
    json: bool,
    /// How much to tell: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", value_parser = logger::level)]
    log_level: log::LevelFilter,
    /// Append the log to a file instead of standard error
    #[arg(long, global = true, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Where running machines are found [env: RVMM_RUNTIME_DIR] [default: $XDG_RUNTIME_DIR/rvmm, /run/rvmm for root]
    #[arg(long, global = true, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Where images are kept [env: RVMM_STORE] [default: $XDG_DATA_HOME/rvmm, ~/.local/share/rvmm]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
}

// The options of a command are made when it is the one that is wanted: all of them are hundreds of KiB and a millisecond. They come after
// the command's own description and would replace it, so types with options have none that clap sees.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run an image, or boot a machine as the bare form does
    #[command(after_help = format!("{RUN_EXAMPLES}\n\n{}", exit::HELP), disable_help_flag = true)]
    Run(Box<image::run::Run>),
    /// Start a named machine that was made of an image again
    Start(image::start::Start),
    /// Remove named machines that do not run
    Rm(image::start::Rm),
    /// Make a new version of an image of what a machine has written
    Commit(image::commit::Commit),
    /// Run an older version of an image, or give it a name
    Checkout(Box<image::checkout::Checkout>),
    /// List the machines that run
    Ps(ps::Args),
    /// Stop machines: with the power button, by force if that does not help
    Stop(stop::Args),
    /// Wait until machines have ended, and print their exit statuses
    Wait(wait::Args),
    /// Stop the vCPUs of machines; they keep everything and go on with `resume`
    Pause(pause::Pause),
    /// Let paused machines go on
    Resume(pause::Resume),
    /// Show all about machines and images, as JSON
    Inspect(inspect::Args),
    /// List images
    Images(image::list::Images),
    /// Show every version of an image
    History(image::list::History),
    /// Give an image a name
    Tag(image::tag::Tag),
    /// Remove images
    Rmi(image::tag::Rmi),
    /// Show which files and blocks two images have different
    Diff(image::diff::Diff),
    /// Make an image of a container image, a root file system or a disk
    Import(Box<image::import::Import>),
    /// Write an image as a disk, an archive or a container image
    Export(image::export::Export),
    /// Write images to one file
    Save(image::files::Save),
    /// Read images from a file
    Load(image::files::Load),
    /// Remove what no image and no machine needs
    Gc(image::keep::Gc),
    /// Compare every blob with its digest
    Verify(image::keep::Verify),
    /// Look after the kernels that images run with
    #[command(subcommand)]
    Kernel(kernel::Command),
    /// Save machines with their memory, and look after what was saved
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Go on with a machine that was saved, in the foreground
    Restore(Box<restore::Args>),
    /// Start many machines from one snapshot or one machine, in the background
    Clone(clone::Args),
    #[command(flatten)]
    Registry(registry::Command),
    /// Run a command in a machine
    Exec(exec::Args),
    /// Copy files between the host and a machine
    Cp(cp::Args),
    /// Show what a machine said on its console
    Logs(logs::Args),
    /// Use the console of a machine that runs in the background
    Attach(attach::Args),
    /// Say what this host offers to virtual machines, and how to put right what is missing
    Doctor(doctor::Args),
    /// Print completions for a shell
    Completions(shell::Completions),
    /// Print the manual page, or write all of them to a directory
    Man(shell::Man),
}

const EXAMPLES: &str = "Examples:
  rvmm --kernel /boot/vmlinuz-6.1.0-cloud-amd64 --initrd initrd.img --disk root.ext4
  rvmm --kernel vmlinuz --disk root.ext4 --net user,publish=8080:80 --memory 1G --cpus 2 --name web
  rvmm ps
  rvmm stop web";

const RUN_EXAMPLES: &str = "Examples:
  rvmm run alpine
  rvmm run alpine -e GREETING=hello -- sh -c 'echo $GREETING'
  rvmm run -d --name web -p 8080:80 -v data.ext4:/data nginx
  rvmm run --kernel vmlinuz --disk root.ext4
  rvmm run --kernel vmlinuz --disk root.ext4 --name web --console file=web.log --memory 1G --cpus 2
  rvmm run --config machine.json --memory 512M

A machine of an image is gone when it ends, unless it has a name: then `rvmm start` starts it again and `rvmm rm` removes \
it. IMAGE is a name, a digest or its first digits; with ~N it is the version N commits before.

On the console, Ctrl-A h shows the keys that are for rvmm; Ctrl-A x ends the machine.";

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(status) => return ExitCode::from(status),
    };
    let common = cli.common;
    finish(&common, || match cli.command {
        Some(Command::Run(args)) => args.run(&common),
        Some(Command::Start(args)) => args.run(&common),
        Some(Command::Rm(args)) => args.run(&common),
        Some(Command::Commit(args)) => args.run(&common),
        Some(Command::Checkout(args)) => args.run(&common),
        Some(Command::Ps(args)) => ps::run(&args, &common),
        Some(Command::Stop(args)) => stop::run(&args, &common),
        Some(Command::Wait(args)) => wait::run(&args, &common),
        Some(Command::Pause(args)) => args.run(&common),
        Some(Command::Resume(args)) => args.run(&common),
        Some(Command::Inspect(args)) => inspect::run(&args, &common),
        Some(Command::Images(args)) => args.run(&common),
        Some(Command::History(args)) => args.run(&common),
        Some(Command::Tag(args)) => args.run(&common),
        Some(Command::Rmi(args)) => args.run(&common),
        Some(Command::Diff(args)) => args.run(&common),
        Some(Command::Import(args)) => args.run(&common),
        Some(Command::Export(args)) => args.run(&common),
        Some(Command::Save(args)) => args.run(&common),
        Some(Command::Load(args)) => args.run(&common),
        Some(Command::Gc(args)) => args.run(&common),
        Some(Command::Verify(args)) => args.run(&common),
        Some(Command::Kernel(command)) => command.run(&common),
        Some(Command::Snapshot(command)) => command.run(&common),
        Some(Command::Restore(args)) => restore::run(*args, &common),
        Some(Command::Clone(args)) => clone::run(args, &common),
        Some(Command::Registry(_)) => Err(registry::hand_over()),
        Some(Command::Exec(args)) => exec::run(args, &common),
        Some(Command::Cp(args)) => cp::run(&args, &common),
        Some(Command::Logs(args)) => logs::run(&args, &common),
        Some(Command::Attach(args)) => attach::run(&args, &common),
        Some(Command::Doctor(args)) => doctor::run(&args, &common),
        Some(Command::Completions(args)) => args.run(),
        Some(Command::Man(args)) => args.run(),
        None => run::run(cli.run, &common),
    })
}

/// Does what a command line says, once it is understood; returns what the program ends with.
fn finish(common: &Common, does: impl FnOnce() -> Result<u8, Failure>) -> ExitCode {
    output::end_on_panic(common.json);
    signals::survive_file_size_limit();
    let result =
        logger::start(common.log_level, common.log_file.as_deref(), common.json).map_err(Failure::usage);
    let result = result.and_then(|()| does());
    ExitCode::from(result.unwrap_or_else(|failure| failure.report(common.json)))
}
