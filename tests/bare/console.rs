//! Where the serial console can be.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tempfile::TempDir;

use crate::common::bare::guest;
use crate::common::machine::Machine;
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
