//! The program that speaks to registries: where rvmm finds it, and what comes of it when it does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;

use crate::common::host;
use crate::common::machine::Machine;
use crate::home::Home;

const RVMM: &str = env!("CARGO_BIN_EXE_rvmm");
const PROGRAM: &str = env!("CARGO_BIN_EXE_rvmm-registry");
const COMMANDS: [&str; 4] = ["pull", "push", "login", "logout"];

/// An rvmm that lies alone.
fn alone() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a scratch directory");
    let rvmm = directory.path().join("rvmm");
    // By another process: a file that is written here cannot be executed as long as any test's child that has not come to its own
    // program yet has it open.
    host::run("cp", &[RVMM, &rvmm.to_string_lossy()]);
    (directory, rvmm)
}

#[test]
fn where_it_is_missing_one_line_says_so() {
    let (_directory, rvmm) = alone();
    let missing = rvmm.with_file_name("rvmm-registry").display().to_string();
    for arguments in
        [["pull", "localhost:5000/web:1"], ["push", "localhost:5000/web:1"], ["logout", "localhost:5000"]]
    {
        // On PATH there is one, and it is not taken.
        let place = Path::new(PROGRAM).parent().expect("a directory");
        let command = || arguments.iter().fold(Machine::program(&rvmm).env("PATH", place), Machine::arg);
        command().run().refused(&[&missing, "install", "cargo build --release"]);
        let said = command().arg("--json").run();
        assert_eq!(
            (said.status, said.out.as_str(), &said.report()["status"]),
            (125, "", &125.into()),
            "{said}"
        );
        assert!(said.report()["error"].as_str().is_some_and(|error| error.contains(&missing)), "{said}");
    }
    fs::write(&missing, "not a program").expect("room");
    Machine::program(&rvmm)
        .arg("logout")
        .arg("localhost:5000")
        .run()
        .refused(&[&missing, "Permission denied"]);
    // What is wrong with a command line is known without it.
    Machine::program(&rvmm).arg("pull").arg("--sise").run().refused(&["--sise", "--size"]);
    Machine::program(&rvmm).arg("pull").arg("--help").run().said("docker.io/library/alpine:3");
}

#[test]
fn it_lies_beside_the_file_that_a_link_leads_to() {
    let directory = TempDir::new().expect("a scratch directory");
    let link = directory.path().join("rvmm");
    symlink(RVMM, &link).expect("room");
    let home = directory.path();
    let said = Machine::program(&link).env("HOME", home).arg("logout").arg("localhost:5000").run();
    said.failed(1, &["No login at localhost:5000"]);
}

#[test]
fn rvmm_becomes_it() {
    let home = Home::new();
    let command = || home.command(&["login", "localhost:5000", "-u", "me", "--password-stdin"]);
    let running = command().stdin(Stdio::piped()).start();
    let executed = || fs::read_link(format!("/proc/{}/exe", running.pid())).expect("a process");
    while executed() == Path::new(RVMM).canonicalize().expect("rvmm") {
        std::thread::yield_now();
    }
    // The same process; nobody stands between it and whoever sends signals.
    assert_eq!(executed(), Path::new(PROGRAM).canonicalize().expect("the program"));
    running.terminate();
    assert_eq!(running.finish().status, -libc::SIGTERM);
}

#[test]
fn statuses_and_errors_are_its_own() {
    let home = Home::new();
    home.run(&["push", "web:1"]).refused(&["web:1", "no registry"]);
    home.run(&["push", "web:1", "localhost:1/web:1"]).failed(1, &["web:1"]);
    let said = home.run(&["--json", "pull", "localhost:1/web:1"]);
    assert_eq!((said.status, said.out.as_str(), &said.report()["status"]), (1, "", &1.into()), "{said}");
    assert!(said.report()["error"].as_str().is_some_and(|error| error.contains("localhost:1")), "{said}");
    let log = home.path("log");
    let said =
        home.command(&["--log-level", "trace", "pull", "localhost:1/web:1"]).option("--log-file", &log).run();
    said.failed(1, &["localhost:1"]);
    assert!(log.exists());
}

#[test]
fn both_have_the_same_help() {
    Machine::program(PROGRAM).arg("--help").run().said("This is what rvmm pull, push, login and logout use");
    Machine::program(PROGRAM).run().refused(&["rvmm-registry", "pull, push, login, logout"]);
    let all = Machine::command_line(&["--help"]).run();
    let completions = Machine::command_line(&["completions", "fish"]).run();
    let pages = TempDir::new().expect("a scratch directory");
    assert_eq!(Machine::command_line(&["man"]).option("--dir", pages.path()).run().status, 0);
    for command in COMMANDS {
        let ours = Machine::command_line(&[command, "--help"]).run();
        let its = Machine::program(PROGRAM).arg(command).arg("--help").run();
        assert_eq!(its.out.replace("Usage: rvmm-registry ", "Usage: rvmm "), ours.out);
        all.said(&format!("\n  {command} "));
        let page = fs::read_to_string(pages.path().join(format!("rvmm-{command}.1"))).expect("a page");
        for option in
            ours.out.lines().filter_map(|line| line.trim_start().split_once("--").map(|(_, name)| name))
        {
            let name = option.split([' ', ',']).next().expect("a word");
            completions.said(&format!(" -l {name} "));
            assert!(page.contains(&name.replace('-', "\\-")), "{name} is not in the manual of {command}");
        }
    }
}

#[test]
fn machines_run_without_tls() {
    let text = |program: &str| String::from_utf8_lossy(&fs::read(program).expect("a program")).into_owned();
    let (rvmm, program) = (text(RVMM), text(PROGRAM));
    // Words of the protocol: every program that speaks it has them.
    for word in ["master secret", "tls13 "] {
        assert!(program.contains(word), "{word:?} tells nothing: rvmm-registry has it not");
        assert!(
            !rvmm.contains(word),
            "rvmm carries TLS: {word:?} is in it. What in it reaches image/registry?"
        );
    }
}
