//! Commands and files in a guest, by the command line. The agent is the real one, on this host behind the vsock socket of
//! a machine whose own guest does nothing; tests/linux has it where it belongs.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use common::bare::guest;
use common::machine::{Ended, Machine, Running};
use common::pty::Pty;
use common::{eventually, host};

/// A machine called `web` with an agent.
struct Web {
    machine: Running,
    agent: Child,
    directory: TempDir,
}

impl Web {
    fn start() -> Self {
        let machine =
            guest("counter every=1000").option("--name", "web").option("--stop-timeout", "0").start();
        machine.says("counter ");
        let directory = TempDir::new().expect("a directory");
        let at = directory.path().join("agent");
        let agent = Command::new(env!("RVMM_AGENT")).arg("--unix").arg(&at).spawn().expect("an agent");
        let vsock = machine.runtime_directory().join("web/vsock.sock");
        fs::remove_file(&vsock).expect("the machine's socket");
        let listener = UnixListener::bind(&vsock).expect("a socket in its place");
        thread::spawn(move || listener.incoming().flatten().for_each(|client| relay(client, &at)));
        Web { machine, agent, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Machine {
        Machine::command_line(arguments).beside(&self.machine)
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).run()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// What the device does for one client.
fn relay(mut client: UnixStream, agent: &Path) {
    let mut line = [0; 13];
    client.read_exact(&mut line).expect("a first line");
    assert_eq!(&line, b"CONNECT 1023\n");
    client.write_all(b"OK 1073741824\n").expect("a client");
    let mut stream = None;
    assert!(eventually(|| {
        stream = UnixStream::connect(agent).ok();
        stream.is_some()
    }));
    let stream = stream.expect("an agent that listens");
    let pipe = |mut from: UnixStream, mut to: UnixStream| {
        thread::spawn(move || {
            // What one side does not want any more says nothing of the other direction.
            if io::copy(&mut from, &mut to).is_err() {
                let _ = io::copy(&mut from, &mut io::sink());
            }
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    let again = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    pipe(again(&client), again(&stream));
    pipe(stream, client);
}

#[test]
fn a_command_has_its_output_and_its_status() {
    need!(host::kvm());
    let web = Web::start();
    let ended = web.run(&["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ended.status, ended.out.as_str(), ended.err.as_str()), (7, "out\n", "err\n"));
    let ended =
        web.run(&["exec", "-e", "A=b c", "-w", "/usr", "web", "--", "sh", "-c", "echo $A; pwd; kill -9 $$"]);
    assert_eq!((ended.status, ended.out.as_str()), (137, "b c\n/usr\n"), "{ended}");
    // A name alone is the value that it has here, as for `run`.
    let told = web.run(&["exec", "-e", "PATH", "-e", "A=", "web", "sh", "-c", "echo $PATH,$A"]).out;
    assert_eq!(told.trim_end(), format!("{},", std::env::var("PATH").expect("a path")));
    web.run(&["exec", "-e", "NOBODY_HAS_THIS", "web", "id"]).failed(125, &["not set here"]);
    let mut exec = web.command(&["exec", "-i", "web", "sort"]).stdin(Stdio::piped()).start();
    exec.types("b\na\n");
    assert_eq!(exec.finish().out, "a\nb\n");
    // Without -i there is no input to wait for.
    assert_eq!(web.run(&["exec", "web", "cat"]).status, 0);
}

#[test]
fn what_cannot_be_run_is_said() {
    need!(host::kvm());
    let web = Web::start();
    web.run(&["exec", "web", "no-such-program"]).failed(127, &["no-such-program"]);
    web.run(&["exec", "web", "/etc/passwd"]).failed(126, &["/etc/passwd"]);
    web.run(&["exec", "-u", "no-such-user", "web", "id"]).failed(125, &["no-such-user"]);
    web.run(&["exec", "wep", "id"]).failed(125, &["`wep`", "`web`"]);
    web.run(&["exec", "-t", "web", "id"]).failed(125, &["terminal"]);
    let other = guest("counter every=1000")
        .option("--name", "other")
        .option("--vsock", "none")
        .beside(&web.machine)
        .start();
    other.says("counter ");
    web.run(&["exec", "other", "id"]).failed(125, &["other", "--vsock"]);
}

#[test]
fn signals_end_the_command_and_not_only_the_client() {
    need!(host::kvm());
    let web = Web::start();
    let exec = web
        .command(&["exec", "web", "sh", "-c", "trap 'echo told; exit 3' TERM; echo on; sleep 1000 & wait"])
        .start();
    exec.says("on\n").terminate();
    let ended = exec.finish();
    assert_eq!((ended.status, ended.out.as_str()), (3, "on\ntold\n"));
    // A client that is killed takes its command along.
    let exec = web.command(&["exec", "web", "sh", "-c", "echo $$; exec sleep 1000"]).start();
    exec.says("\n");
    let pid = exec.said().trim().parse().expect("a number");
    exec.kill();
    assert!(eventually(|| !host::runs(pid)), "the command runs on");
}

#[test]
fn a_terminal_goes_all_the_way() {
    need!(host::kvm());
    let web = Web::start();
    let mut pty = Pty::new();
    let before = pty.settings();
    let mut exec = Command::new(env!("CARGO_BIN_EXE_rvmm"));
    exec.args([
        "exec",
        "-it",
        "web",
        "sh",
        "-c",
        "test -t 0 && test -t 2; echo terminal $?; read line; echo got $line; exit 5",
    ])
    .env("RVMM_RUNTIME_DIR", web.machine.runtime_directory())
    .stdin(pty.program())
    .stdout(pty.program())
    .stderr(pty.program());
    let mut child = exec.spawn().expect("rvmm");
    pty.shows("terminal 0");
    assert_ne!(pty.settings(), before, "the terminal is raw");
    pty.types("hello\r");
    pty.shows("got hello");
    assert_eq!(child.wait().expect("an end").code(), Some(5));
    assert_eq!(pty.settings(), before, "the terminal is as it was");
}

#[test]
fn files_go_both_ways() {
    need!(host::kvm());
    let web = Web::start();
    let (here, there) = (web.path("here"), web.path("there"));
    let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&here, &bytes).expect("a file");
    fs::set_permissions(&here, fs::Permissions::from_mode(0o750)).expect("a file");
    let copies = |from: &str, to: &str| {
        let ended = web.run(&["cp", from, to]);
        assert_eq!((ended.status, ended.out.as_str(), ended.err.as_str()), (0, "", ""), "{from} {to}");
    };
    copies(&web.text("here"), &format!("web:{}", web.text("there")));
    assert_eq!(fs::read(&there).expect("a copy"), bytes);
    assert_eq!(fs::metadata(&there).expect("a copy").permissions().mode() & 0o7777, 0o750);
    fs::create_dir(web.path("dir")).expect("a directory");
    copies(&format!("web:{}", web.text("there")), &web.text("dir"));
    assert_eq!(fs::read(web.path("dir/there")).expect("a copy"), bytes);
    // Into a directory of the guest, whether that is written or found out.
    copies(&web.text("here"), &format!("web:{}", web.text("dir")));
    assert_eq!(fs::read(web.path("dir/here")).expect("a copy"), bytes);
    let ended = web.run(&["cp", &format!("web:{}", web.text("dir/here")), "-"]);
    assert_eq!(ended.out.as_bytes(), String::from_utf8_lossy(&bytes).as_bytes());
    let mut copy =
        web.command(&["cp", "-", &format!("web:{}", web.text("typed"))]).stdin(Stdio::piped()).start();
    copy.types("typed\n");
    assert_eq!(copy.finish().status, 0);
    assert_eq!(fs::read_to_string(web.path("typed")).expect("a copy"), "typed\n");
    // A directory with all that is in it.
    std::os::unix::fs::symlink("there", web.path("dir/link")).expect("a link");
    copies(&format!("web:{}", web.text("dir")), &web.text("tree"));
    copies(&web.text("tree"), &format!("web:{}", web.text("again")));
    copies(&web.text("tree"), &format!("web:{}", web.text("again")));
    for tree in ["tree", "again", "again/tree"] {
        assert_eq!(fs::read(web.path(tree).join("here")).expect("a copy"), bytes, "{tree}");
        assert_eq!(fs::read_link(web.path(tree).join("link")).expect("a link"), Path::new("there"), "{tree}");
    }
}

#[test]
fn a_link_leads_to_the_file_that_is_replaced() {
    need!(host::kvm());
    let web = Web::start();
    fs::write(web.path("new"), "new").expect("a file");
    for (target, to) in
        [("guest", format!("web:{}", web.text("link-guest"))), ("host", web.text("link-host"))]
    {
        fs::write(web.path(target), "old").expect("a file");
        let link = web.path(&format!("link-{target}"));
        std::os::unix::fs::symlink(target, &link).expect("a link");
        let from = if target == "guest" { web.text("new") } else { format!("web:{}", web.text("new")) };
        assert_eq!(web.run(&["cp", &from, &to]).status, 0);
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new(target));
        assert_eq!(fs::read_to_string(web.path(target)).expect("a file"), "new", "{target}");
    }
}

#[test]
fn a_directory_from_a_guest_does_no_harm() {
    need!(host::kvm(), host::root());
    let web = Web::start();
    fs::create_dir(web.path("dir")).expect("a directory");
    fs::copy("/bin/true", web.path("dir/program")).expect("a file");
    fs::set_permissions(web.path("dir/program"), fs::Permissions::from_mode(0o6755)).expect("a mode");
    host::run("mknod", &[&web.text("dir/device"), "c", "1", "3"]);
    host::run("mkfifo", &[&web.text("dir/pipe")]);
    let long = "long".repeat(40);
    fs::write(web.path("dir").join(&long), "a long name").expect("a file");
    let ended = web.run(&["cp", &format!("web:{}", web.text("dir")), &web.text("out")]);
    assert_eq!((ended.status, ended.err.as_str()), (0, ""));
    let mode =
        |name: &str| fs::symlink_metadata(web.path("out").join(name)).map(|found| found.permissions().mode());
    assert_eq!(mode("program").expect("a file") & 0o7777, 0o755, "nobody becomes somebody else by it");
    assert!(mode("device").is_err(), "a device of the host");
    assert!(mode("pipe").is_ok() && mode(&long).is_ok());

    // What comes from the host belongs to the guest's root, as files alone do.
    std::os::unix::fs::chown(web.path("out/program"), Some(1000), Some(1000)).expect("an owner");
    assert_eq!(web.run(&["cp", &web.text("out"), &format!("web:{}", web.text("in"))]).status, 0);
    let found = fs::metadata(web.path("in/program")).expect("a file");
    assert_eq!((found.uid(), found.gid()), (0, 0));
}

#[test]
fn what_cannot_be_copied_is_said() {
    need!(host::kvm());
    let web = Web::start();
    web.run(&["cp", "web:/no/such", "."]).failed(1, &["/no/such"]);
    web.run(&["cp", "/no/such", "web:/tmp/x"]).failed(1, &["/no/such"]);
    web.run(&["cp", "a", "b"]).failed(125, &["NAME:PATH"]);
    web.run(&["cp", "web:/a", "web:/b"]).failed(125, &["twice"]);
    web.run(&["cp", "web:a", "b"]).failed(125, &["`/`"]);
    web.run(&["cp", "web:/etc/passwd", "/no/such/directory/x"]).failed(1, &["/no/such/directory/x"]);
    // What is there stays as it is.
    fs::create_dir(web.path("dir")).expect("a directory");
    fs::create_dir(web.path("dir/proc")).expect("a directory");
    web.run(&["cp", "web:/proc", &web.text("dir")]).failed(1, &["dir/proc"]);
    assert_eq!(fs::read_dir(web.path("dir")).expect("a directory").count(), 1);
}
