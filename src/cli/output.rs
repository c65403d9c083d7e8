//! What commands print: results on standard output, failures on standard error.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;
use serde_json::json;

use super::exit;
use crate::sys::terminal;
use crate::vmm::chain;

/// Why a command failed, with the status the program ends with.
pub struct Failure {
    pub(super) status: u8,
    pub(super) error: Box<dyn std::error::Error>,
}

impl Failure {
    /// Nothing was started: bad usage, a missing file, a machine that cannot be had.
    pub fn usage(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Failure { status: exit::USAGE, error: error.into() }
    }

    /// The command could not do what it was asked for.
    pub fn refused(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Failure { status: exit::REFUSED, error: error.into() }
    }

    /// Says so on standard error; returns the status.
    pub fn report(&self, json: bool) -> u8 {
        complain(json, self.status, &chain(self.error.as_ref()));
        self.status
    }
}

/// A text that may come from anybody, fit for a terminal.
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Says on standard error what is wrong, in one line.
pub fn complain(json: bool, status: u8, message: &str) {
    let _ = match json {
        true => writeln!(io::stderr(), "{}", json!({ "error": message, "status": status })),
        false => writeln!(io::stderr(), "rvmm: {}", plain(message)),
    };
}

/// A mistake in the program, on whatever thread, ends it as what it is: with the terminal as it was, and a status of its own.
pub fn end_on_panic(json: bool) {
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        complain(json, exit::FAILED, &format!("internal error: {panic}").replace('\n', " "));
        std::process::exit(exit::FAILED.into())
    }));
}

/// Prints a result.
pub fn print(text: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // Whoever read has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::refused(format!("Cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Prints a result as JSON that people can read, too.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(serde_json::to_string_pretty(value).map_err(Failure::refused)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set in the process that is to panic.
    const INSIDE: &str = "RVMM_TEST_PANIC";

    #[test]
    fn a_panic_is_an_internal_error() {
        if std::env::var_os(INSIDE).is_some() {
            end_on_panic(true);
            // Not on the main thread, and nobody waits for it.
            std::thread::spawn(|| panic!("a mistake"));
            std::thread::park();
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "cli::output::tests::a_panic_is_an_internal_error", "--nocapture"]);
        let output = again.env(INSIDE, "1").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(126), "{said}");
        let line: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert!(line["error"].as_str().unwrap().contains("a mistake"), "{said}");
    }
}
