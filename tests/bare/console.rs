//! Where the serial console can be.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::bare::guest;
use crate::common::machine::{Machine, Running};
use crate::common::{eventually, host};
use crate::need;

/// A guest that prints line after line.
const TALKATIVE: &str = "counter every=1000";

/// Reads until `text` has come.
fn read_until(mut source: impl Read, text: &str) {
    let (mut seen, mut piece) = (String::new(), [0; 256]);
    while !seen.contains(text) {
        let count = source.read(&mut piece).expect("a console to read from");
        assert!(count > 0, "the console ends with {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
}

#[test]
fn nowhere() {
    need!(host::kvm());
    let ended = guest("hello").option("--console", "off").run();
    assert_eq!(ended.powered_off().out, "");
}

#[test]
fn a_file_that_grows() {
    need!(host::kvm());
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("console");
    fs::write(&path, "before\n").expect("a file");
    for _ in 0..2 {
        let ended = guest("hello").option("--console", format!("file={}", path.display())).run();
        assert_eq!(ended.powered_off().out, "");
    }
    let text = fs::read_to_string(&path).expect("a file");
    assert!(text.starts_with("before\n") && text.matches("OK hello\n").count() == 2, "{text}");
}

#[test]
fn a_new_terminal() {
    need!(host::kvm());
    let machine = guest(TALKATIVE).option("--console", "pty").start();
    let told = machine.complains("/dev/pts/");
    let path = told.split_whitespace().find(|word| word.starts_with("/dev/pts/")).expect("a path");
    read_until(File::open(path).expect("a terminal"), "counter ");
    assert_eq!(machine.said(), "");
}

/// The terminal of a machine that is named `one` and whose console is one.
fn terminal(machine: &Running) -> String {
    machine.complains("/dev/pts/");
    let inspected: Value = serde_json::from_str(&machine.command(&["inspect", "one"]).out).expect("JSON");
    inspected[0]["console"].as_str().expect("a path").into()
}

#[test]
fn a_new_terminal_for_one_person_after_another() {
    need!(host::kvm());
    // It stays when all is said: the end of a machine takes along what nobody has read from its terminal yet.
    let machine = guest("echo end=hlt").option("--name", "one").option("--console", "pty");
    let machine = machine.option("--stop-timeout", "0");
    // The path is told whatever the log tells.
    let machine = machine.option("--log-level", "off").start();
    let path = terminal(&machine);
    for (keys, heard) in [("ab", "heard b"), ("q", "heard 3 in all")] {
        let mut person = File::options().read(true).write(true).open(&path).expect("a terminal");
        person.write_all(keys.as_bytes()).expect("a terminal");
        // What the guest says does not come back to it.
        read_until(&person, heard);
    }
    machine.terminate();
    machine.finish().ended(130, "stopped");
}

#[test]
fn what_was_typed_ahead_comes_after_a_restart() {
    need!(host::kvm());
    // More than the port holds: the rest waits for room there.
    let mut machine = guest("echo end=reset").stdin(std::process::Stdio::piped()).start();
    machine.types(&format!("q{}q", "x".repeat(200)));
    machine.says_times("heard q", 2).says_times("listening", 3);
    machine.terminate();
}

#[test]
fn a_line_that_nobody_reads_loses_bytes_and_does_not_hold_the_guest_up() {
    need!(host::kvm());
    let test = "counter every=1 fpu=off rounds=5000";
    guest(test).option("--console", "pty").run().powered_off();
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("console");
    let machine = guest(test).option("--console", format!("socket={}", path.display())).start();
    let _client = connect(&path);
    machine.finish().powered_off();
}

/// A machine that says more than anybody reads: it waits for room in the pipe that is its standard output.
fn unheard() -> (Running, PipeReader) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let machine = guest("counter every=1 fpu=off").option("--name", "one").stdout(writer).start();
    let mut there: libc::c_int = 0;
    let full = eventually(|| {
        // SAFETY: the kernel writes one `int`; the other call takes numbers.
        let room = unsafe {
            libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut there);
            libc::fcntl(reader.as_raw_fd(), libc::F_GETPIPE_SZ)
        };
        // A pipe has room if it has room for a page.
        there > room - 4096
    });
    assert!(full, "{there} bytes in the pipe");
    (machine, reader)
}

#[test]
fn a_machine_whose_output_nobody_reads_can_be_paused_and_goes_on() {
    need!(host::kvm());
    let (machine, reader) = unheard();
    for command in ["pause", "resume"] {
        assert_eq!(machine.command(&[command, "one"]).status, 0, "{command}");
    }
    // Not a byte is lost.
    let lines =
        BufReader::new(reader).lines().skip_while(|line| !line.as_ref().expect("text").contains(" timer "));
    let counts = lines.map(|line| {
        let line = line.expect("text");
        line.split(' ').nth(1).expect("a number").parse::<u64>().expect(&line)
    });
    counts.take(5000).reduce(|before, now| {
        assert_eq!(now, before + 1);
        now
    });
}

#[test]
fn a_machine_whose_output_nobody_reads_can_be_stopped() {
    need!(host::kvm());
    let (machine, _reader) = unheard();
    assert_eq!(machine.command(&["stop", "--force", "one"]).status, 0);
    machine.finish().ended(130, "stopped");
    let (machine, _reader) = unheard();
    machine.terminate();
    assert!(eventually(|| !machine.signal_is_pending(libc::SIGTERM)), "the first signal is taken");
    machine.terminate();
    machine.finish().ended(130, "stopped");
}

#[test]
fn a_socket_in_the_place_of_one_that_is_left_over() {
    need!(host::kvm());
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("console");
    for _ in 0..2 {
        let machine = guest(TALKATIVE).option("--console", format!("socket={}", path.display())).start();
        read_until(connect(&path), "counter ");
        machine.kill();
    }
    let machine = guest(TALKATIVE).option("--console", format!("socket={}", path.display()));
    let machine = machine.option("--stop-timeout", "0").start();
    read_until(connect(&path), "counter ");
    machine.terminate();
    machine.finish().ended(130, "stopped");
    assert!(!path.exists(), "a machine that ends leaves none");
}

#[test]
fn a_socket_with_one_client_after_another() {
    need!(host::kvm());
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("console");
    let machine = guest(TALKATIVE).option("--console", format!("socket={}", path.display())).start();
    for _ in 0..2 {
        read_until(connect(&path), "counter ");
    }
    assert_eq!(machine.said(), "");
}

fn connect(path: &Path) -> UnixStream {
    let mut client = None;
    eventually(|| {
        client = UnixStream::connect(path).ok();
        client.is_some()
    });
    client.expect("a console that listens")
}

#[test]
fn a_log_that_is_read_and_a_console_to_attach_to() {
    need!(host::kvm());
    let machine = guest(TALKATIVE).option("--name", "talks").option("--console", "log").start();
    let log = || machine.command(&["logs", "talks"]).out;
    assert!(eventually(|| log().matches("\ncounter ").count() >= 2), "{}", log());
    let command = |arguments: &[&str]| Machine::command_line(arguments).beside(&machine).start();
    let follower = command(&["logs", "-f", "talks"]);
    let attached = command(&["attach", "talks"]);
    follower.says("counter at ").says_times("\ncounter ", 4);
    attached.says_times("\ncounter ", 2);
    assert!(!attached.said().contains("counter at "), "{}", attached.said());
    assert_eq!(machine.said(), "");
    // Both end with the machine.
    machine.command(&["stop", "--force", "talks"]);
    assert_eq!((follower.finish().status, attached.finish().status), (0, 0));
}

#[test]
fn a_console_that_is_not_kept_is_said_to_be_so() {
    need!(host::kvm());
    let machine = guest(TALKATIVE).option("--name", "talks").start();
    machine.says("counter ");
    machine.command(&["logs", "talks"]).failed(1, &["talks", "--console log"]);
    machine.command(&["attach", "talks"]).failed(1, &["talks", "terminal"]);
}
