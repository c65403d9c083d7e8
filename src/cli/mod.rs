//! The command line: one file for each family of commands. Only here does the program print, exit and read its
//! environment.

mod exit;
mod logger;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs virtual machines as easily as containers
///
/// The bare form boots a machine in the foreground: rvmm --kernel vmlinuz --disk rootfs.ext4
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Args,
    #[command(flatten)]
    common: Common,
}

/// Options of every command.
#[derive(clap::Args)]
struct Common {
    /// Print machine-readable JSON
    #[arg(long, global = true)]
    json: bool,
    /// How much to tell: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    log_level: log::LevelFilter,
    /// Append the log to a file instead of standard error
    #[arg(long, global = true, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a machine in the foreground, as the bare form does
    Run(Box<run::Args>),
}

/// Why a command failed, with the status the program ends with.
struct Failure {
    status: u8,
    error: Box<dyn std::error::Error>,
}

impl Failure {
    /// Nothing was started: bad usage, a missing file, a machine that cannot be had.
    fn usage(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Failure { status: exit::USAGE, error: error.into() }
    }
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = logger::start(cli.common.log_level, cli.common.log_file.as_deref())
        .map_err(Failure::usage)
        .and_then(|()| match cli.command {
            Some(Command::Run(args)) => run::run(*args, &cli.common),
            None => run::run(cli.run, &cli.common),
        });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(Failure { status, error }) => {
            let message = crate::vmm::chain(error.as_ref());
            match cli.common.json {
                true => eprintln!("{}", serde_json::json!({ "error": message, "status": status })),
                false => eprintln!("rvmm: {message}"),
            }
            ExitCode::from(status)
        }
    }
}
