//! People and programs at a running Linux machine: its console, `pause`, `resume`, the power button.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::common::linux::{NO_ROOT, shell};
use crate::common::{eventually, host};
use crate::need;

/// A client of a console on a socket.
struct Client(UnixStream);

impl Client {
    fn connect(path: &Path) -> Self {
        let mut stream = None;
        eventually(|| {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("a console that listens");
        stream.set_read_timeout(Some(Duration::from_secs(200))).expect("a socket");
        Client(stream)
    }

    fn types(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).expect("a console");
    }

    #[track_caller]
    fn reads(&mut self, text: &str) {
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        while !seen.contains(text) {
            match self.0.read(&mut piece) {
                Ok(count) if count > 0 => seen.push_str(&String::from_utf8_lossy(&piece[..count])),
                end => panic!("no {text:?} on the console ({end:?}) after:\n{seen}"),
            }
        }
    }
}

#[test]
fn a_shell_on_a_socket_is_paused_and_goes_on_and_hears_the_power_button() {
    need!(host::linux());
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("console");
    let console = format!("socket={}", path.display());
    let machine = shell().option("--console", console).option("--name", "box").words(NO_ROOT).start();

    let mut client = Client::connect(&path);
    client.reads("root@rvmm:");
    client.types("echo $((6 * 7)) is it");
    client.reads("42 is it");

    assert_eq!(machine.command(&["pause", "box"]).status, 0);
    assert!(machine.command(&["ps"]).out.contains("paused"));
    client.types("echo $((7 * 7)) comes late");
    machine.command(&["pause", "box"]).failed(1, &["paused"]);
    assert_eq!(machine.command(&["resume", "box"]).status, 0);
    client.reads("49 comes late");
    drop(client);

    // Another client finds the same shell.
    let mut client = Client::connect(&path);
    client.types("echo $((8 * 8)) is here");
    client.reads("64 is here");
    machine.terminate();
    machine.finish().powered_off();
}
