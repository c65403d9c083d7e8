//! `rvmm completions` and `rvmm man`: what a package installs beside the program.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::output::{Failure, print};

/// Options of `completions`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm completions bash > ~/.local/share/bash-completion/completions/rvmm
  rvmm completions zsh > ~/.zfunc/_rvmm
  rvmm completions fish > ~/.config/fish/completions/rvmm.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Options of `man`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm man | man -l -
  rvmm man --dir ~/.local/share/man/man1")]
pub struct Man {
    /// Write one page for each command to this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Commands that take names of machines.
const ON_MACHINES: [&str; 4] = ["stop", "pause", "resume", "inspect"];

impl Completions {
    /// Prints the script.
    pub fn run(&self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "rvmm", &mut script);
        let mut script = String::from_utf8_lossy(&script).into_owned();
        if self.shell == Shell::Fish {
            for command in ON_MACHINES {
                script.push_str(&format!(
                    "complete -c rvmm -n \"__fish_seen_subcommand_from {command}\" -f -a \"(rvmm ps -q 2>/dev/null)\"\n"
                ));
            }
        }
        print(script.trim_end())?;
        Ok(0)
    }
}

impl Man {
    /// Prints the page of the program, or writes all pages.
    pub fn run(&self) -> Result<u8, Failure> {
        let command = Cli::command();
        match &self.dir {
            Some(directory) => clap_mangen::generate_to(command, directory).map_err(|error| {
                Failure::refused(format!("Cannot write manual pages to {}: {error}", directory.display()))
            })?,
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page).map_err(Failure::refused)?;
                print(String::from_utf8_lossy(&page).trim_end())?;
            }
        }
        Ok(0)
    }
}
