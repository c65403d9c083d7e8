//! The client with the real agent at a unix socket of this host, and with peers that do not keep to the protocol.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// The agent, which the library carries.
const PROGRAM: &str = env!("RVMM_AGENT");

/// An agent that runs on this host.
struct Agent {
    child: Child,
    directory: TempDir,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = process::Command::new(PROGRAM).arg("--unix").arg(directory.path().join("agent")).spawn();
        Agent { child: child.unwrap(), directory }
    }

    fn client(&self) -> Client {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(self.directory.path().join("agent")) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < LONG, "{error}"),
            }
            thread::sleep(Duration::from_millis(2));
        };
        Client::greet(Channel::over(stream), LONG).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell(script: &str) -> Command {
    Command { argv: ["sh", "-c", script].map(Into::into).into(), ..Command::default() }
}

/// Output, error output and end of a command.
fn finish(mut running: Running) -> (String, String, End) {
    let (mut output, mut error) = (Vec::new(), Vec::new());
    let end = loop {
        match running.event().unwrap() {
            Event::Output(bytes) => output.extend_from_slice(bytes),
            Event::ErrorOutput(bytes) => error.extend_from_slice(bytes),
            Event::End(end) => break end,
        }
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output), text(error), end)
}

#[test]
fn one_connection_serves_many_requests() {
    let agent = Agent::start();
    let mut client = agent.client();
    let before = SystemTime::now();
    let time = client.ping().unwrap();
    assert!(before <= time && time <= SystemTime::now());
    client.sync(LONG).unwrap();
    // A clock that is right is let alone, and nobody needs a privilege for that.
    let time = Some((SystemTime::now(), LONG));
    let outcome = client.identity(&Identity { time, ..Identity::default() }, LONG).unwrap();
    assert_eq!((&outcome.done[..], outcome.failed.len()), (&["time_ns".to_string()][..], 0), "{outcome:?}");
    let interfaces = vec![Interface { was: "02:00:00:00:00:01".into(), mac: "02:00:00:00:00:02".into() }];
    let outcome = client.identity(&Identity { interfaces, ..Identity::default() }, LONG).unwrap();
    assert_eq!((outcome.done.len(), outcome.failed.len()), (0, 1), "{outcome:?}");
    assert!(outcome.failed[0].0.contains("02:00:00:00:00:01"), "{outcome:?}");
    // It answers on after a refusal.
    let error = client.read("/no/such/file").map(drop).unwrap_err();
    assert!(matches!(&error, Error::Refused { errno: Some(2), .. }), "{error}");
    client.ping().unwrap();
}

#[test]
fn commands_have_streams_and_an_end() {
    let agent = Agent::start();
    let mut command = shell("echo $0 $A; pwd; echo wrong >&2; cat; exit 7");
    command.argv.push("zero".into());
    command.env.insert("A".into(), "b c".into());
    command.directory = Some("/usr".into());
    let running = agent.client().exec(&command).unwrap();
    let long = "0123456789".repeat(20_000);
    running.control().input(long.as_bytes()).unwrap();
    running.control().end_input().unwrap();
    let (output, error, end) = finish(running);
    assert_eq!(output, format!("zero b c\n/usr\n{long}"));
    assert_eq!((error.as_str(), end), ("wrong\n", End::Status(7)));
    // All that a command says comes before its end.
    let (output, _, _) =
        finish(agent.client().exec(&shell("head -c 1000000 /dev/zero | tr '\\0' x")).unwrap());
    assert_eq!(output.len(), 1_000_000);
}

#[test]
fn signals_and_terminals_reach_commands() {
    let agent = Agent::start();
    let mut running = agent.client().exec(&shell("echo on; sleep 1000")).unwrap();
    assert_eq!(running.event().unwrap(), Event::Output(b"on\n"));
    running.control().signal(libc::SIGTERM).unwrap();
    assert_eq!(finish(running).2, End::Signal(15));
    assert_eq!(End::Signal(15).status(), 143);
    let mut command = shell("stty size; read line; stty size; test -t 0 -a -t 2");
    command.terminal = Some(Size { rows: 11, columns: 22 });
    let running = agent.client().exec(&command).unwrap();
    running.control().resize(Size { rows: 33, columns: 44 }).unwrap();
    running.control().input(b"\n").unwrap();
    let (output, _, end) = finish(running);
    assert!(output.ends_with("33 44\r\n"), "{output:?}");
    assert_eq!(end, End::Status(0), "{output:?}");
}

#[test]
fn a_command_that_cannot_start_is_an_error() {
    let agent = Agent::start();
    let missing = Command { argv: vec!["no-such-program".into()], ..Command::default() };
    let error = agent.client().exec(&missing).map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::Refused { message, errno: Some(2) } if message.contains("no-such-program")),
        "{error}"
    );
    let nobody = Command { user: Some("no-such-user".into()), ..shell("true") };
    assert!(agent.client().exec(&nobody).map(drop).unwrap_err().to_string().contains("no-such-user"));
    assert!(matches!(agent.client().exec(&Command::default()), Err(Error::Refused { .. })));
}

#[test]
fn files_go_both_ways_and_keep_their_mode() {
    let agent = Agent::start();
    let mut client = agent.client();
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = agent.path("file");
    assert_eq!(client.write(&path, 0o640, &mut &bytes[..]).unwrap(), 300_000);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let download = client.read(&path).unwrap();
    assert_eq!((download.size, download.mode), (300_000, 0o640));
    let mut back = Vec::new();
    assert_eq!(download.copy(&mut back).unwrap(), 300_000);
    assert!(back == bytes);
    assert_eq!(client.write(&path, 0o600, &mut &[][..]).unwrap(), 0);
    assert_eq!(client.read(&path).unwrap().copy(&mut back).unwrap(), 0);
    let error = client.write("/no/such/file", 0o600, &mut &bytes[..]).unwrap_err();
    assert!(matches!(error, Error::Refused { errno: Some(2), .. }), "{error}");
    // A source that breaks leaves nothing.
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let broken = agent.path("broken");
    assert!(matches!(client.write(&broken, 0o600, &mut Broken), Err(Error::Host(_))));
    drop(client);
    assert!(!Path::new(&broken).exists());
}

#[test]
fn what_cannot_be_frozen_is_said() {
    let agent = Agent::start();
    let frozen = agent.client().freeze(&["/proc"], LONG).unwrap();
    assert_eq!((frozen.paths.len(), frozen.skipped.len()), (0, 1), "{frozen:?}");
    assert_eq!(frozen.thaw().unwrap(), [""; 0]);
}

/// Runs a tool of the host; whether it did it.
fn tool(program: &str, words: &[&str]) -> bool {
    process::Command::new(program).args(words).status().is_ok_and(|status| status.success())
}

#[test]
fn what_is_frozen_is_not_left_so_when_the_system_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (image, mount, socket) = (path("image"), path("mount"), path("agent"));
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    std::fs::create_dir(&mount).unwrap();
    if !tool("mke2fs", &["-q", "-F", &image])
        || !tool("unshare", &["-m", "sh", "-c", "mount -o loop \"$0\" \"$1\"", &image, &mount])
    {
        return crate::testing::skip("no file system can be made and mounted");
    }
    // The mount is the agent's alone.
    let script = "mount -o loop \"$0\" \"$1\" && exec \"$2\" --unix \"$3\"";
    let child = process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, &image, &mount, PROGRAM, &socket])
        .spawn()
        .unwrap();
    let agent = Agent { child, directory };
    let frozen = agent.client().freeze(&[&mount], LONG).unwrap();
    assert_eq!((&frozen.paths[..], frozen.skipped.len()), (&[mount.clone()][..], 0), "{frozen:?}");
    let pid = agent.child.id().to_string();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let sent = ["-TERM", "-INT"].map(|signal| tool("kill", &[signal, children.trim()]));
    let thawed = frozen.thaw();
    if thawed.is_err() {
        // Else this host keeps a frozen file system.
        tool("nsenter", &["-m", "-t", &pid, "fsfreeze", "-u", &mount]);
    }
    assert_eq!((thawed.ok(), sent), (Some(vec![mount]), [true; 2]));
}

/// A machine's socket behind which somebody does as the test says.
fn peer(act: impl FnOnce(UnixStream) + Send + 'static) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || act(listener.accept().unwrap().0));
    (directory, path)
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes()[..], &[kind], payload].concat()
}

/// What the client says of a guest that sends `bytes`.
fn refusal(bytes: &'static [u8], patience: Duration) -> String {
    let (_directory, path) = peer(move |mut stream| {
        stream.write_all(bytes).unwrap();
        // The other side ends it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    Client::connect(&path, patience).map(drop).unwrap_err().to_string()
}

#[test]
fn says_what_is_missing() {
    let nowhere = tempfile::tempdir().unwrap();
    let error = Client::connect(&nowhere.path().join("no"), LONG).unwrap_err();
    assert!(matches!(error, Error::NoChannel(_)), "{error}");
    let (_directory, path) = peer(|mut stream| {
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1023\n");
    });
    assert!(matches!(Client::connect(&path, LONG), Err(Error::NoAgent)));
    let short = Duration::from_millis(300);
    assert!(refusal(b"", short).contains("does not answer"));
    assert!(refusal(b"OK 7\n", short).contains("does not answer"));
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let wrong: [(&[u8], &str); 8] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no vsock device"),
        (b"OK 777777777777777777777777777777777777777777777", "no vsock device"),
        (b"OK 7\n\x01\0\0\0\x09x", "unknown kind"),
        (b"OK 7\n\xff\xff\xff\xff\0", "too long"),
        (b"OK 7\n\x01\0\x01\0\x04", "too long"),
        (b"OK 7\n\x02\0\0\0\0{{", "not JSON"),
        (b"OK 7\n\x02\0\0\0\0{}", "who it is"),
        (b"OK 7\n\x1f\0\0\0\0{\"agent\":\"rvmm\",\"protocol\":999}", "protocol 999"),
    ];
    for (bytes, words) in wrong {
        let error = refusal(bytes, LONG);
        assert!(error.contains(words), "{}: {error}", bytes.escape_ascii());
    }
}

#[test]
fn hostile_answers_do_no_harm() {
    let (_directory, path) = peer(|mut stream| {
        stream.write_all(b"OK 7\n").unwrap();
        stream.write_all(&frame(0, br#"{"agent":"rvmm","protocol":1}"#)).unwrap();
        let refusal = json!({ "error": format!("\x1b]0;{}", "x".repeat(10_000)), "errno": 1u64 << 40 });
        stream.write_all(&frame(0, refusal.to_string().as_bytes())).unwrap();
        let deep = [&b"{\"ok\":"[..], &b"[".repeat(100_000)].concat();
        stream.write_all(&frame(0, &deep)).unwrap();
        stream.write_all(&frame(0, br#"{"ok":{"time_ns":-5}}"#)).unwrap();
        stream.write_all(&frame(0, br#"{"ok":{"size":1,"mode":65535}}"#)).unwrap();
        stream.write_all(&frame(0, br#"{"ok":{"pid":1}}"#)).unwrap();
        stream.write_all(&frame(0, br#"{"exit":{"status":256}}"#)).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut client = Client::connect(&path, LONG).unwrap();
    let Err(Error::Refused { message, errno: None }) = client.ping() else { panic!("no refusal") };
    assert!(message.chars().count() == 500 && !message.contains('\x1b'), "{message:?}");
    assert!(matches!(client.ping(), Err(Error::Garbled(_))), "deep nesting");
    assert!(matches!(client.ping(), Err(Error::Garbled(_))), "a time before 1970");
    assert!(matches!(client.read("/").map(drop), Err(Error::Garbled(_))), "a mode that is none");
    let mut running = client.exec(&shell("true")).unwrap();
    assert!(matches!(running.event(), Err(Error::Garbled(_))), "a status that is none");
}
