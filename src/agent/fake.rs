//! A guest's agent for tests of those who ask it, behind the socket of a machine: its file systems are a flag, which nothing but thawing
//! undoes, as in a kernel.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use serde_json::json;

use super::channel::{Channel, Kind, parse};
use crate::sys::socket;
use crate::testing::PATIENCE;

/// What is frozen, and what was asked so far.
#[derive(Default)]
struct Guest {
    frozen: bool,
    done: Vec<&'static str>,
    connections: Vec<UnixStream>,
}

/// The agent.
pub struct FakeAgent {
    socket: PathBuf,
    guest: Arc<(Mutex<Guest>, Condvar)>,
}

impl FakeAgent {
    /// Listens in `directory`.
    pub fn start(directory: &Path) -> Self {
        let socket = directory.join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = Arc::new((Mutex::new(Guest::default()), Condvar::new()));
        let here = Arc::clone(&guest);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, guest) = (stream.unwrap(), Arc::clone(&here));
                thread::spawn(move || serve(stream, &guest));
            }
        });
        FakeAgent { socket, guest }
    }

    /// The socket of the machine that it is in.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until file systems are frozen, or are not.
    pub fn is(&self, frozen: bool) {
        let (guest, changed) = &*self.guest;
        let other = |guest: &mut Guest| guest.frozen != frozen;
        let (_guest, waited) = changed.wait_timeout_while(guest.lock().unwrap(), PATIENCE, other).unwrap();
        assert!(!waited.timed_out(), "frozen: {}", !frozen);
    }

    /// Ends all connections: its processes are gone.
    pub fn hang_up(&self) {
        for connection in self.guest.0.lock().unwrap().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// What it did, in order: `freeze`, `refuse` to do that twice, `thaw`, and `thaw, alone` for a host that has gone.
    pub fn done(&self) -> Vec<&'static str> {
        self.guest.0.lock().unwrap().done.clone()
    }
}

fn serve(stream: UnixStream, guest: &(Mutex<Guest>, Condvar)) {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && socket::read_line(&stream, &mut line, 32).unwrap() > 0 {}
    assert_eq!(line, b"CONNECT 1023\n");
    guest.0.lock().unwrap().connections.push(stream.try_clone().unwrap());
    (&stream).write_all(b"OK 1\n").unwrap();
    let mut channel = Channel::over(stream);
    channel.say(&json!({ "agent": "rvmm", "protocol": 1 })).unwrap();
    let act = |frozen: bool, what| {
        let mut state = guest.0.lock().unwrap();
        state.frozen = frozen;
        state.done.push(what);
        guest.1.notify_all();
    };
    let (mut payload, mut holds) = (Vec::new(), false);
    while let Ok(Kind::Message) = channel.receive(&mut payload, None) {
        let request = parse(&payload).unwrap();
        let answer = match request["op"].as_str() {
            Some("freeze") if guest.0.lock().unwrap().frozen => {
                act(true, "refuse");
                json!({ "frozen": [], "skipped": { "/": "Device or resource busy" } })
            }
            Some("freeze") => {
                holds = true;
                act(true, "freeze");
                json!({ "frozen": ["/"], "skipped": {} })
            }
            Some("thaw") if holds => {
                holds = false;
                act(false, "thaw");
                json!({ "thawed": ["/"] })
            }
            Some("thaw") => json!({ "thawed": [] }),
            op => panic!("{op:?}"),
        };
        if channel.say(&json!({ "ok": answer })).is_err() {
            break;
        }
    }
    if holds {
        act(false, "thaw, alone");
    }
}
