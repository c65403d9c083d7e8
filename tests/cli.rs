//! The program as its users see it: help, errors, and the commands for machines that run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

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
    user.is_refused(&["start", "--stop-timeout", "-1", "web"], 125, &["-1"]);
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

#[test]
fn bash_completes_names_of_machines() {
    let user = User::new();
    let Some(_web) = Running::start(&user, "web") else { return };
    let script = "eval \"$(rvmm completions bash)\"; COMP_WORDS=(rvmm stop w); COMP_CWORD=2; _rvmm rvmm w stop; echo \"${COMPREPLY[@]}\"";
    let program = Path::new(env!("CARGO_BIN_EXE_rvmm")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let bash = Command::new("bash")
        .args(["-c", script])
        .env("PATH", path)
        .env("RVMM_RUNTIME_DIR", user.directory())
        .output();
    let Ok(output) = bash else { return skip("no bash") };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "web", "{}", String::from_utf8_lossy(&output.stderr));
}

/// Says that the test cannot run here, past libtest's capture of standard error.
fn skip(reason: &str) {
    let thread = thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The bare-metal guest; `None` where there is no KVM to run it.
fn guest() -> Option<&'static str> {
    static GUEST: OnceLock<Option<String>> = OnceLock::new();
    let build = || {
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return None;
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/bare");
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--release", "--quiet", "--target-dir", "target"]).current_dir(&directory);
        for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            cargo.env_remove(flags);
        }
        assert!(cargo.status().unwrap().success(), "the bare-metal guest does not build");
        Some(directory.join("target/release/bare").to_str().unwrap().into())
    };
    GUEST.get_or_init(build).as_deref()
}

/// A machine that runs for ever, and does not listen to the power button.
struct Running {
    process: Child,
    ended: bool,
}

impl Running {
    /// Starts one and waits until it runs; `None` where there is no KVM.
    fn start(user: &User, name: &str) -> Option<Self> {
        let machine = Running::launch(user, &["--name", name, "--stop-timeout", "1"])?;
        eventually(|| state(user, name) == "Running");
        Some(machine)
    }

    fn launch(user: &User, options: &[&str]) -> Option<Self> {
        let Some(guest) = guest() else {
            skip("no /dev/kvm");
            return None;
        };
        let mut command = user.command(&["run", "--kernel", guest, "--cmdline-only", "test=exit end=spin"]);
        command.args(["--console", "off", "--net", "none", "--json"]).args(options);
        let process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Some(Running { process, ended: false })
    }

    /// Waits for its end; returns status and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.process.stderr.take().unwrap(), &mut text).unwrap();
        self.ended = true;
        (self.process.wait().unwrap().code(), text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

#[track_caller]
fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(300), "it does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What `ps` says about a machine.
fn state(user: &User, name: &str) -> String {
    let machines = user.json(&["ps"]);
    let machine = machines.as_array().unwrap().iter().find(|machine| machine["name"] == name);
    machine.map(|machine| machine["state"].as_str().unwrap().to_string()).unwrap_or_default()
}

#[test]
fn a_machine_is_led_through_its_life() {
    let user = User::new();
    let Some(web) = Running::start(&user, "web") else { return };
    let machines = user.json(&["ps"]);
    assert_eq!((&machines[0]["pid"], &machines[0]["mem_size_mib"]), (&web.process.id().into(), &256.into()));
    assert!(user.says(&["ps"]).out.lines().nth(1).unwrap().starts_with("web   running "));

    let said = user.says(&["pause", "web"]);
    assert_eq!((said.status, said.out.as_str(), said.err.as_str()), (Some(0), "web\n", ""));
    assert_eq!(state(&user, "web"), "Paused");
    user.is_refused(&["pause", "web"], 1, &["web:", "paused"]);
    assert_eq!(user.json(&["resume", "web"])[0]["done"], true);
    assert_eq!(state(&user, "web"), "Running");

    let machine = &user.json(&["inspect", "web"])[0];
    assert_eq!((&machine["name"], &machine["state"]), (&"web".into(), &"Running".into()));
    assert_eq!(machine["config"]["boot-source"]["boot_args"], "test=exit end=spin");
    user.is_refused(&["stop", "wbe"], 1, &["`wbe`", "did you mean `web`"]);

    // The guest does not listen: by force after a second.
    let start = Instant::now();
    let said = user.says(&["stop", "web"]);
    assert_eq!((said.status, said.out.as_str()), (Some(0), "web\n"));
    assert!(said.err.starts_with("rvmm: web: ") && said.err.ends_with(" by force\n"), "{}", said.err);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(user.json(&["ps"]), Value::Array(vec![]));
    let (status, text) = web.end();
    assert_eq!(status, Some(130));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["cause"], "stopped");
    assert_eq!(std::fs::read_dir(user.directory()).unwrap().count(), 0);
}

#[test]
fn a_name_belongs_to_one_machine() {
    let user = User::new();
    let Some(mut web) = Running::start(&user, "web") else { return };
    let (status, text) = Running::launch(&user, &["--name", "web"]).unwrap().end();
    assert_eq!(status, Some(125));
    assert!(text.contains("`web` runs already"), "{text}");
    assert_eq!(state(&user, "web"), "Running");
    // A killed machine leaves its name to the next.
    web.process.kill().unwrap();
    web.process.wait().unwrap();
    assert!(user.directory().join("web/lock").exists());
    let _again = Running::start(&user, "web").unwrap();
    let _other = Running::launch(&user, &[]).unwrap();
    eventually(|| user.json(&["ps", "-q"]).as_array().unwrap().len() == 2);
    let said = user.says(&["stop", "--force", "--all"]);
    assert_eq!((said.status, said.out.lines().count(), said.err.as_str()), (Some(0), 2, ""));
    assert_eq!(user.json(&["ps"]), Value::Array(vec![]));
}

#[test]
fn stopping_is_as_patient_as_asked() {
    let user = User::new();
    let Some(_a) = Running::start(&user, "a") else { return };
    let _b = Running::start(&user, "b").unwrap();
    let _c = Running::start(&user, "c").unwrap();
    // A paused machine hears no button: nobody waits for it.
    user.says(&["pause", "a", "b"]);
    let start = Instant::now();
    assert_eq!(user.says(&["stop", "a"]).status, Some(0));
    assert_eq!(user.json(&["stop", "b", "--timeout", "100"])[0]["forced"], true);
    assert_eq!(user.json(&["stop", "c", "--timeout", "0"])[0]["forced"], true);
    assert!(start.elapsed() < Duration::from_secs(90));
}

#[test]
fn a_machine_that_does_not_answer_is_told_of() {
    let user = User::new();
    let Some(web) = Running::start(&user, "web") else { return };
    let pid = web.process.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    // Each of its threads stops when it comes to it.
    let stopped = |stat: String| stat.contains(") T ");
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    eventually(|| {
        threads().all(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(stopped))
    });
    assert_eq!(state(&user, "web"), "Silent");
    user.is_refused(&["stop", "web"], 1, &["web:", "does not answer"]);
    assert_eq!(user.says(&["stop", "--force", "web"]).status, Some(0));
    assert_eq!(web.end().0, None);
    assert_eq!(user.json(&["ps"]), Value::Array(vec![]));
}

#[test]
fn the_api_speaks_http() {
    let user = User::new();
    let Some(web) = Running::start(&user, "web") else { return };
    let socket = user.directory().join("web/api.sock");
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args(["-s", "-w", "\n%{http_code}", "--unix-socket", socket.to_str().unwrap()])
            .args(arguments);
        let output = command.output().ok()?;
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) =
            text.rsplit_once('\n').map(|(body, status)| (body.to_string(), status.to_string())).unwrap();
        Some((status, body))
    };
    let Some((status, body)) = curl(&["http://localhost/"]) else { return skip("no curl") };
    assert_eq!(status, "200");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["id"], "web");
    let action = |action: &str| curl(&["-X", "PUT", "-d", action, "http://localhost/actions"]).unwrap().0;
    assert_eq!(action("{}"), "400");
    let large = user.0.path().join("large");
    std::fs::write(&large, vec![b' '; 2_000_000]).unwrap();
    assert_eq!(action(&format!("@{}", large.display())), "413");
    let chunked = ["-X", "PUT", "-H", "Transfer-Encoding: chunked", "-d", "{}", "http://localhost/actions"];
    assert_eq!(curl(&chunked).unwrap().0, "501");
    assert_eq!(action("{\"action_type\":\"SendCtrlAltDel\"}"), "204");
    let (status, body) =
        curl(&["-X", "PUT", "-d", "{\"action_type\":\"Kill\"}", "http://localhost/actions"]).unwrap();
    assert_eq!(status, "200");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["stopped"], true);
    assert_eq!(web.end().0, Some(130));
}
