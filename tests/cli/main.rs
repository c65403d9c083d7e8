//! The program as its users see it: help, errors, and the commands for machines that run.

mod machines;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A user with a runtime directory of their own.
struct User(TempDir);

/// What a command said.
struct Said {
    status: Option<i32>,
    out: String,
    err: String,
}

impl User {
    fn new() -> Self {
        User(TempDir::new().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvmm"));
        command.args(arguments).env("RVMM_RUNTIME_DIR", self.directory()).stdin(Stdio::null());
        command
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn says(&self, arguments: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { status: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// One clear line on standard error, nothing else, and this status.
    #[track_caller]
    fn is_refused(&self, arguments: &[&str], status: i32, words: &[&str]) {
        let said = self.says(arguments);
        assert_eq!((said.status, said.out.as_str()), (Some(status), ""), "{arguments:?}: {}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{arguments:?}: {}", said.err);
        let line = said.err.strip_prefix("rvmm: ").unwrap();
        for word in words {
            assert!(line.contains(word), "{arguments:?}: {line:?} does not say {word:?}");
        }
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let said = self.says(&[&["--json"], arguments].concat());
        serde_json::from_str(&said.out)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", said.out, said.err))
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let user = User::new();
    let said = user.says(&["--help"]);
    assert_eq!((said.status, said.err.as_str()), (Some(0), ""));
    let list = said.out.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<(&str, &str)> =
        list.lines().filter_map(|line| line.trim_start().split_once(' ')).collect();
    for command in ["run", "ps", "stop", "pause", "resume", "inspect", "doctor", "completions", "man"] {
        assert!(commands.iter().any(|&(name, _)| name == command), "--help does not name {command}");
    }
    for (command, purpose) in commands.into_iter().filter(|&(command, _)| command != "help") {
        let said = user.says(&[command, "--help"]);
        assert_eq!((said.status, said.err.as_str()), (Some(0), ""), "{command}");
        assert!(said.out.starts_with(purpose.trim_start()), "{command}: {}", said.out);
        assert!(said.out.contains(&format!("Usage: rvmm {command}")), "{command}: {}", said.out);
        // A family of commands has its examples at its members.
        let family = said.out.contains("Commands:\n");
        assert!(family || said.out.contains("Examples:\n  rvmm "), "{command}: {}", said.out);
    }
    // As for containers, `-h` is a name there.
    user.is_refused(&["run", "-h"], 125, &["--hostname <NAME>"]);
    assert!(user.says(&["--version"]).out.starts_with("rvmm "));
}

#[test]
fn bad_usage_is_told_in_one_line() {
    let user = User::new();
    user.is_refused(&[], 125, &["--kernel"]);
    user.is_refused(&["--krnel", "x"], 125, &["--krnel", "--kernel"]);
    user.is_refused(&["frob"], 125, &["frob"]);
    user.is_refused(&["Cargo.toml"], 125, &["`Cargo.toml` is a file", "--kernel Cargo.toml boots it"]);
    user.is_refused(&["-kernel", "x", "-m", "512M"], 125, &["`-kernel` is `--kernel FILE` here"]);
    user.is_refused(&["--kernel", "x", "--append", "quiet"], 125, &["`--append` is `--cmdline STRING` here"]);
    user.is_refused(&["kill", "web"], 125, &["`kill` is `stop --force NAME` here"]);
    user.is_refused(&["stop", "-t", "soon", "web"], 125, &["`soon`", "a number of seconds"]);
    for timeout in ["-1", "4294967296", "18446744073709552"] {
        user.is_refused(&["start", "--stop-timeout", timeout, "web"], 125, &[timeout]);
    }
    user.is_refused(&["ps", "--foo"], 125, &["--foo"]);
    user.is_refused(&["stop"], 125, &["NAME"]);
    user.is_refused(&["stop", "a", "--all"], 125, &["--all"]);
    user.is_refused(&["completions", "bsh"], 125, &["bash", "zsh"]);
    user.is_refused(&["--kernel", "x", "ps"], 125, &["--kernel", "ps"]);
    user.is_refused(&["--kernel", "x", "--memory", "5X"], 125, &["5X", "512M"]);
    user.is_refused(&["--kernel", "x", "--name", "../x"], 125, &["../x", "letters"]);
    user.is_refused(&["--kernel", "/nowhere/vmlinuz"], 125, &["/nowhere/vmlinuz", "No such file"]);
    user.is_refused(&["run", "--restart=always", "x"], 125, &["--restart", "rvmm start"]);
    user.is_refused(&["run", "x", "ls", "-l"], 125, &["-l", "behind `--`"]);
    user.is_refused(&["run", "--stop-signal", "NOT", "x"], 125, &["'NOT'", "SIGINT"]);
    user.is_refused(&["run", "--env-fil", "f", "x"], 125, &["--env-fil", "--env-file"]);
    user.is_refused(&["--config", "/nowhere/x.json"], 125, &["/nowhere/x.json", "No such file"]);
    let said = user.says(&["--json", "--krnel"]);
    let error: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["status"], 125);
    assert!(error["error"].as_str().unwrap().contains("--krnel"));
}

#[test]
fn nobody_runs() {
    let user = User::new();
    let said = user.says(&["ps"]);
    assert_eq!((said.status, said.out.lines().count()), (Some(0), 1), "{}", said.out);
    assert!(said.out.starts_with("NAME "));
    assert_eq!(user.json(&["ps"]), Value::Array(vec![]));
    assert_eq!((user.says(&["ps", "-q"]).out.trim(), user.json(&["ps", "-q"])), ("", Value::Array(vec![])));
    for command in ["stop", "pause", "resume"] {
        user.is_refused(&[command, "web"], 1, &["`web`", "none is running"]);
    }
    let said = user.says(&["inspect", "web"]);
    assert_eq!((said.status, said.out.trim()), (Some(1), "[]"));
    assert_eq!(user.says(&["stop", "--all"]).status, Some(0));
    assert_eq!(user.json(&["stop", "web"])[0]["done"], false);
    // Looking makes nothing.
    assert!(!user.directory().exists());
    let elsewhere = user.0.path().join("elsewhere");
    std::fs::write(&elsewhere, "").unwrap();
    user.is_refused(&["ps", "--runtime-dir", elsewhere.to_str().unwrap()], 1, &["elsewhere"]);
}

#[test]
fn the_doctor_is_understood_by_programs() {
    let user = User::new();
    let report = user.json(&["doctor"]);
    let checks = report["checks"].as_array().unwrap();
    let missing = checks.iter().any(|check| check["status"] == "missing");
    assert_eq!(report["linux_guests"], !missing);
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    for name in
        ["kvm-device", "tap", "passt", "io-uring", "userfaultfd", "memory", "overcommit", "huge-pages", "thp"]
    {
        assert!(names.contains(&name), "{name}");
    }
    for check in checks {
        assert!(["ok", "warn", "missing"].contains(&check["status"].as_str().unwrap()));
        assert!(!check["says"].as_str().unwrap().is_empty());
    }
    if let Some(speed) = checks.iter().find(|check| check["name"] == "kvm-speed") {
        assert!(speed["value"]["instructions_per_second"].as_u64().unwrap() > 1000);
    }
    let said = user.says(&["doctor"]);
    assert_eq!(said.status, Some(i32::from(missing)));
    assert_eq!(said.out.lines().filter(|line| line.starts_with("missing ")).count() > 0, missing);
}

#[test]
fn shells_and_manuals_are_served() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = user.says(&["completions", shell]);
        assert_eq!(said.status, Some(0));
        assert!(said.out.contains("inspect") && said.out.contains("rvmm"), "{shell}");
    }
    assert!(user.says(&["man"]).out.contains(".TH rvmm 1"));
    let pages = user.0.path().join("man");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(user.says(&["man", "--dir", pages.to_str().unwrap()]).status, Some(0));
    for page in ["rvmm.1", "rvmm-ps.1", "rvmm-stop.1"] {
        assert!(std::fs::metadata(pages.join(page)).unwrap().len() > 100, "{page}");
    }
    user.is_refused(&["man", "--dir", "/nowhere"], 1, &["/nowhere"]);
}
