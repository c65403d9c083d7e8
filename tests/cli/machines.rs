//! The commands for machines that run.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::User;

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
    assert!(text.contains("`web` runs already") && text.contains("choose another name"), "{text}");
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
fn a_machine_that_gets_no_processor_for_a_while_is_waited_for() {
    let user = User::new();
    let Some(web) = Running::start(&user, "web") else { return };
    let pid = web.process.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    signal("-STOP");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(5));
            signal("-CONT");
        });
        assert_eq!(user.says(&["pause", "web"]).status, Some(0));
    });
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
    // Whoever ends a machine hears here that it was by force; what asks for its end may come too late.
    let kill = "{\"action_type\":\"Kill\"}";
    let (status, body) = curl(&["-X", "PUT", "-d", kill, "http://localhost/actions"]).unwrap();
    assert_eq!(status, "200");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["stopped"], true);
    assert_eq!(web.end().0, Some(130));
}
