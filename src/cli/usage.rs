//! Command lines that are wrong: one clear line says what is wrong, and what comes nearest.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use super::{Cli, Common, exit, output};

/// Reads the command line; help and complaints are printed here, with the status that the program ends with.
pub fn parse() -> Result<Cli, u8> {
    let command = Cli::command();
    let result = command.clone().try_get_matches().and_then(|matches| {
        match stray(&matches) {
            Some(_) if matches.subcommand_name().is_some() => {}
            _ => return Cli::from_arg_matches(&matches),
        }
        let (option, subcommand) = (stray(&matches).unwrap_or_default(), matches.subcommand_name());
        let text = format!(
            "`--{option}` boots a machine: it cannot stand before the command `{}`",
            subcommand.unwrap_or_default()
        );
        Err(command.clone().error(ErrorKind::ArgumentConflict, text))
    });
    result.map_err(|error| tell(&error))
}

/// Prints help or a complaint; returns the status that the program ends with.
pub fn tell(error: &clap::Error) -> u8 {
    match error.use_stderr() {
        true => {
            // Before the command line is understood, this is how it is known that a program reads.
            let json = std::env::args_os().any(|argument| argument == "--json");
            output::complain(json, exit::USAGE, &line(error));
            exit::USAGE
        }
        false => {
            let _ = error.print();
            0
        }
    }
}

/// An option of the bare form among `matches`.
fn stray(matches: &ArgMatches) -> Option<String> {
    let common = <Common as clap::Args>::augment_args(clap::Command::new(""));
    let is_common = |id: &str| common.get_arguments().any(|argument| argument.get_id() == id);
    let command = Cli::command();
    let options = command.get_arguments().filter(|argument| !is_common(argument.get_id().as_str()));
    options
        .filter(|argument| matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine))
        .find_map(|argument| argument.get_long().map(String::from))
}

/// What clap says in paragraphs, in one line: the fault with its list, and the tip.
fn line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let told = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> = told.flat_map(str::split_whitespace).collect();
    let message = words.join(" ").replacen("error: ", "", 1).replacen(" tip: ", "; ", 1);
    let mut letters = message.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{} (--help shows more)", letters.as_str())
}
