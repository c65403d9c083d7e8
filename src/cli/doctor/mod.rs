//! `rvmm doctor`: what this host offers to virtual machines, in plain words, and how to put right what is missing.

mod host;
mod kvm;

use serde::Serialize;
use serde_json::Value;

use super::output::{Failure, print, print_json};
use super::{Common, exit};

// Options of `doctor`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm doctor
  rvmm doctor --json | jq '.checks[] | select(.status != \"ok\")'
  rvmm doctor > /dev/null && echo Linux guests run here

ok: as it should be. warn: machines run, but something is slower, smaller or not offered. missing: Linux guests \
do not run directly here. The exit status is 0 only if nothing is missing.")]
pub struct Args {}

/// How well it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Missing,
}

/// What was found out about one thing. The names and the form of the values stay the same over versions; the words may change.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    /// What it is, and what that means.
    says: String,
    /// The command that puts it right.
    fix: Option<String>,
    /// For programs.
    value: Value,
}

impl Finding {
    fn new(name: &'static str, status: Status, says: impl Into<String>, value: impl Into<Value>) -> Self {
        Finding { name, status, says: says.into(), fix: None, value: value.into() }
    }

    /// What the user can do about it.
    fn fix(self, command: impl Into<String>) -> Self {
        Finding { fix: Some(command.into()), ..self }
    }
}

/// All findings.
#[derive(Serialize)]
struct Report {
    /// Linux guests can run directly here.
    linux_guests: bool,
    checks: Vec<Finding>,
}

/// Looks at everything and tells about it.
pub fn run(_args: &Args, common: &Common) -> Result<u8, Failure> {
    let checks: Vec<_> = kvm::checks().into_iter().chain(host::checks()).collect();
    let linux_guests = checks.iter().all(|finding| finding.status != Status::Missing);
    let report = Report { linux_guests, checks };
    match common.json {
        true => print_json(&report)?,
        false => print(text(&report))?,
    }
    Ok(if linux_guests { 0 } else { exit::REFUSED })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Finding { name, status, says, fix, .. } in &report.checks {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Missing => "missing",
        };
        text.push_str(&format!("{status:7}  {name:13}  {says}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("{:26}fix: {fix}\n", ""));
        }
    }
    text.push_str(match report.linux_guests {
        true => "\nLinux guests run directly here.",
        false => "\nLinux guests do not run directly here: see what is missing above.",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_each_thing_on_its_line() {
        let checks = vec![
            Finding::new("a", Status::Ok, "Good", 1),
            Finding::new("b", Status::Missing, "Bad", Value::Null).fix("sudo better"),
        ];
        assert_eq!(
            text(&Report { linux_guests: false, checks }),
            "ok       a              Good\n\
             missing  b              Bad\n\
             \x20                         fix: sudo better\n\
             \n\
             Linux guests do not run directly here: see what is missing above."
        );
    }

    #[test]
    fn every_check_has_its_own_name() {
        let checks: Vec<_> = kvm::checks().into_iter().chain(host::checks()).collect();
        let mut names: Vec<_> = checks.iter().map(|finding| finding.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len());
        assert!(checks.iter().all(|finding| finding.status == Status::Ok || !finding.says.is_empty()));
    }
}
