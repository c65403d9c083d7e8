//! The program that speaks to registries.

mod login;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

use super::Command;
use crate::cli::{Common, finish, usage};

/// Moves images to and from registries
///
/// This is what rvmm pull, push, login and logout use: it lies beside rvmm, which runs it. The options are the same.
#[derive(Parser)]
#[command(name = super::PROGRAM, version, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = false)]
struct Program {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let Program { command, common } = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => return ExitCode::from(usage::tell(&error)),
    };
    finish(&common, || match command {
        Command::Pull(args) => args.run(&common),
        Command::Push(args) => args.run(&common),
        Command::Login(args) => args.run(&common),
        Command::Logout(args) => args.run(),
    })
}
