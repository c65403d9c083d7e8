//! Command lines that are wrong: one clear line says what is wrong, and what comes nearest.

use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use super::image::habits::instead as instead_of;
use super::{Cli, Common, exit, output};

/// Reads the command line; help and complaints are printed here, with the status that the program ends with.
pub fn parse() -> Result<Cli, u8> {
    // It takes as long to describe all commands as to make a machine in KVM, so that is done once.
    let mut command = Cli::command();
    let result = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let Some(subcommand) = matches.subcommand_name() else { return Cli::from_arg_matches(&matches) };
        let Some(option) = stray(&command, &matches) else { return Cli::from_arg_matches(&matches) };
        let text = format!("`--{option}` boots a machine: it cannot stand before the command `{subcommand}`");
        Err(command.error(ErrorKind::ArgumentConflict, text))
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

/// An option of the bare form of `command` among `matches`.
fn stray(command: &clap::Command, matches: &ArgMatches) -> Option<String> {
    let common = <Common as clap::Args>::augment_args(clap::Command::new(""));
    let is_common = |id: &str| common.get_arguments().any(|argument| argument.get_id() == id);
    let given = command.get_arguments().filter(|argument| {
        let id = argument.get_id().as_str();
        matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
    });
    given
        .filter(|argument| !is_common(argument.get_id().as_str()))
        .find_map(|argument| argument.get_long().map(String::from))
}

/// What QEMU, Firecracker and container engines call what has another name here.
const ELSEWHERE: [(&str, &str); 16] = [
    ("-kernel", "--kernel FILE"),
    ("-initrd", "--initrd FILE"),
    ("-append", "--cmdline STRING"),
    ("--append", "--cmdline STRING"),
    ("--ram", "--memory SIZE"),
    ("-smp", "--cpus N"),
    ("--smp", "--cpus N"),
    ("-drive", "--disk PATH"),
    ("--drive", "--disk PATH"),
    ("--config-file", "--config FILE"),
    ("kill", "stop --force NAME"),
    ("unpause", "resume NAME"),
    ("ls", "ps"),
    ("prune", "gc"),
    ("info", "doctor"),
    ("version", "--version"),
];

/// The word that is wrong, as clap tells it.
fn wrong(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word),
        _ => None,
    }
}

/// What the word is called here that is none of ours.
fn renamed(error: &clap::Error) -> Option<String> {
    let command = wrong(error, ContextKind::InvalidSubcommand);
    if let Some(word) = command.filter(|word| Path::new(word).is_file()) {
        return Some(format!("`{word}` is a file and no command: --kernel {word} boots it"));
    }
    let unknown = command.or_else(|| wrong(error, ContextKind::InvalidArg))?;
    // Of `-kernel` only `-k` is told.
    let given = std::env::args_os().filter_map(|word| word.into_string().ok());
    let mut given = given.filter(|word| word.starts_with(unknown));
    let (word, ours) = given.find_map(|word| ELSEWHERE.into_iter().find(|(theirs, _)| *theirs == word))?;
    Some(format!("`{word}` is `{ours}` here"))
}

/// What `run` has instead of an option that it does not know.
fn instead(error: &clap::Error, text: &str) -> Option<&'static str> {
    let is_run = text.lines().any(|line| line.starts_with("Usage: rvmm run "));
    let is_unknown = error.kind() == ErrorKind::UnknownArgument;
    wrong(error, ContextKind::InvalidArg).filter(|_| is_run && is_unknown).map(instead_of)
}

/// What clap says in paragraphs, in one line: the fault with its list, and the tip.
fn line(error: &clap::Error) -> String {
    if let Some(told) = renamed(error) {
        return format!("{told} (--help shows more)");
    }
    let text = error.render().to_string();
    let instead = instead(error, &text);
    let told = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    // What clap would do with the option is not what a user of containers means.
    let told = told.filter(|line| instead.is_none() || !line.trim_start().starts_with("tip: to pass"));
    let words: Vec<&str> =
        told.chain(instead.map(|_| "tip:")).chain(instead).flat_map(str::split_whitespace).collect();
    let message = words.join(" ").replacen("error: ", "", 1).replace(" tip: ", "; ");
    let mut letters = message.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{} (--help shows more)", letters.as_str())
}
