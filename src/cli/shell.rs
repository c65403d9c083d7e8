//! `rvmm completions` and `rvmm man`: what a package installs beside the program.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::output::{Failure, print};

// Options of `completions`.
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

// Options of `man`.
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
const ON_MACHINES: [&str; 5] = ["stop", "wait", "pause", "resume", "inspect"];

/// What gives these names in every shell.
const NAMES: &str = "$(rvmm ps -q 2>/dev/null)";

impl Completions {
    /// Prints the script.
    pub fn run(&self) -> Result<u8, Failure> {
        print(script(self.shell).trim_end())?;
        Ok(0)
    }
}

/// The script of clap, to which the names of the machines that run are added for the common shells.
fn script(shell: Shell) -> String {
    let mut command = Cli::command();
    command.build();
    if shell == Shell::Bash {
        // Words are listed in double quotes: the shell runs what stands there when it completes.
        let names = |argument: clap::Arg| argument.value_parser([NAMES]);
        for on_machines in ON_MACHINES {
            command = command.mut_subcommand(on_machines, |command| command.mut_arg("names", names));
        }
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "rvmm", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Zsh {
        let lines: Vec<String> = script.lines().map(String::from).collect();
        let complete = format!(":{{compadd -- ${{(f)\"{NAMES}\"}}}}'");
        let names = |line: String| match line.starts_with("'*::names") {
            true => line.replace(":_default'", &complete),
            false => line,
        };
        script = lines.into_iter().map(names).collect::<Vec<_>>().join("\n");
    }
    if shell == Shell::Fish {
        for command in ON_MACHINES {
            let condition = format!("__fish_seen_subcommand_from {command}");
            script.push_str(&format!(
                "complete -c rvmm -n \"{condition}\" -f -a \"(rvmm ps -q 2>/dev/null)\"\n"
            ));
        }
    }
    script
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_completed() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert_eq!(script(shell).matches("rvmm ps -q").count(), ON_MACHINES.len(), "{shell}");
        }
        assert!(script(Shell::Elvish).contains("inspect"));
    }

    /// Lines are broken where the terminal is at its end, and not before as well.
    #[test]
    fn paragraphs_of_help_are_one_line() {
        fn look(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_text = |line: &str| !line.is_empty() && !line.starts_with(' ');
            for (line, next) in help.lines().zip(help.lines().skip(1)) {
                assert!(!is_text(line) || !is_text(next), "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(look);
        }
        let mut command = Cli::command();
        command.build();
        look(&command);
    }
}
