//! passt with a guest made by hand, in a network namespace whose only way out leads nowhere.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::*;
use crate::memory::{Memory, Pages, allocate};
use crate::net::testing::{End, passt_in_namespace as ready, run, udp};
use crate::net::{HEADER, MAX_FRAME};
use crate::testing::PATIENCE;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const BROADCAST: [u8; 6] = [0xff; 6];

struct Guest {
    user: User,
    memory: Arc<Memory>,
}

impl Guest {
    fn new(config: &str) -> Self {
        let config = serde_json::from_str(config).unwrap();
        let mut user = User::open(&config).unwrap();
        user.start(Offloads::ALL).unwrap();
        let memory = Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).unwrap());
        Guest { user, memory }
    }

    fn buffers(&self, len: usize) -> Buffers {
        let mut buffers = Buffers::new(&self.memory);
        buffers.push(GuestAddress(0), len).unwrap();
        buffers
    }

    fn send(&mut self, frame: &[u8]) {
        let buffers = self.buffers(HEADER + frame.len());
        buffers.write_at(HEADER, frame);
        assert!(self.user.send(&buffers).unwrap());
    }

    /// Waits for a frame that `wanted` wants.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        let buffers = self.buffers(MAX_FRAME);
        while Instant::now() < end {
            match self.user.receive(&buffers).unwrap() {
                Received::Frame(len) => {
                    let mut frame = vec![0; len];
                    buffers.read_at(0, &mut frame);
                    assert_eq!(frame[..HEADER], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    if wanted(&frame[HEADER..]) {
                        return frame.split_off(HEADER);
                    }
                }
                _ => sleep(Duration::from_millis(1)),
            }
        }
        panic!("the frame did not come");
    }

    /// Gets an address; returns the offer's options.
    fn discover(&mut self) -> Vec<u8> {
        let mut request = vec![0; 240];
        // A request over Ethernet, a transaction number, the guest's address, the mark of DHCP.
        request[..8].copy_from_slice(&[1, 1, 6, 0, 0xca, 0xfe, 0, 1]);
        request[28..34].copy_from_slice(&MAC);
        request[236..].copy_from_slice(&[99, 130, 83, 99]);
        // Message type: discover; the end.
        request.extend([53, 1, 1, 255]);
        request.resize(300, 0);
        let from = End { mac: MAC, ip: [0; 4], port: 68 };
        let to = End { mac: BROADCAST, ip: [255; 4], port: 67 };
        self.send(&udp(&from, &to, &request, |_| 0));
        let offer =
            self.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == [0, 68]);
        let answer = &offer[42..];
        assert_eq!(answer[..8], [2, 1, 6, 0, 0xca, 0xfe, 0, 1]);
        assert_eq!(answer[16..20], [192, 0, 2, 2], "the address that is offered");
        answer[240..].to_vec()
    }

    /// Asks who has the gateway's address.
    fn resolve(&mut self) -> [u8; 6] {
        let mut request = [&BROADCAST[..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
        request.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        self.send(&request);
        let reply = self.receive(|frame| frame[12..14] == [8, 6] && frame[20..22] == [0, 2]);
        assert_eq!(reply[28..32], [192, 0, 2, 1]);
        reply[22..28].try_into().unwrap()
    }
}

/// The value of option `code`.
fn option(mut options: &[u8], code: u8) -> Option<&[u8]> {
    while let [found, len, rest @ ..] = options {
        let (value, next) = rest.split_at_checked(usize::from(*len))?;
        if *found == code {
            return Some(value);
        }
        options = next;
    }
    None
}

#[test]
fn a_guest_finds_the_world() {
    if !ready("net::user::tests::a_guest_finds_the_world") {
        return;
    }
    let mut guest = Guest::new(r#"{"publish": ["127.0.0.1:7080:80", "127.0.0.1:7053:53/udp"]}"#);
    let options = guest.discover();
    assert_eq!(option(&options, 53), Some(&[2][..]), "an offer");
    assert_eq!(option(&options, 3), Some(&[192, 0, 2, 1][..]), "the router");
    assert_eq!(option(&options, 26), Some(&MTU.to_be_bytes()[..]), "the MTU");
    let gateway = guest.resolve();

    // Out: nobody minds the checksum, which is left to the link.
    let server = UdpSocket::bind("198.51.100.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let from = End { mac: MAC, ip: [192, 0, 2, 2], port: 4000 };
    let port = server.local_addr().unwrap().port();
    let to = End { mac: gateway, ip: [198, 51, 100, 1], port };
    let large = vec![7; 9000];
    guest.send(&udp(&from, &to, &large, |pseudo| pseudo));
    let mut bytes = [0; 10_000];
    let (len, source) = server.recv_from(&mut bytes).unwrap();
    assert!(bytes[..len] == large);
    server.send_to(b"answer", source).unwrap();
    let answer = guest.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
    assert_eq!(answer[42..], *b"answer");

    // In: a connection and a datagram to published ports.
    let client =
        std::thread::spawn(|| TcpStream::connect_timeout(&"127.0.0.1:7080".parse().unwrap(), PATIENCE));
    let syn = guest.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 6);
    assert_eq!((&syn[30..34], &syn[36..38], syn[47]), (&[192, 0, 2, 2][..], &[0, 80][..], 2));
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"query", "127.0.0.1:7053").unwrap();
    let query = guest.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
    assert_eq!((&query[36..38], &query[42..]), (&[0, 53][..], &b"query"[..]));
    drop(client);
}

#[test]
fn a_guest_finds_names_through_a_local_server() {
    if !ready("net::user::tests::a_guest_finds_names_through_a_local_server") {
        return;
    }
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    run("mount", &format!("--bind {} /etc/resolv.conf", resolv_conf.path().display()));
    if std::fs::exists("/run/systemd/resolve").unwrap() {
        run("mount", "-t tmpfs none /run/systemd/resolve");
    }
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut guest = Guest::new("{}");
    let options = guest.discover();
    assert_eq!(option(&options, 6).unwrap().rchunks(4).next(), Some(&[192, 0, 2, 1][..]));
    let from = End { mac: MAC, ip: [192, 0, 2, 2], port: 4000 };
    let to = End { mac: guest.resolve(), ip: [192, 0, 2, 1], port: 53 };
    guest.send(&udp(&from, &to, b"who is it?", |_| 0));
    let mut bytes = [0; 100];
    let (len, source) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..len], *b"who is it?");
    server.send_to(b"it is me", source).unwrap();
    let answer = guest.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
    assert_eq!(
        (&answer[26..30], &answer[34..36], &answer[42..]),
        (&to.ip[..], &[0, 53][..], &b"it is me"[..])
    );
}

#[test]
fn a_guest_cannot_reach_the_loopback() {
    if !ready("net::user::tests::a_guest_cannot_reach_the_loopback") {
        return;
    }
    let server = UdpSocket::bind("0.0.0.0:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut guest = Guest::new("{}");
    guest.discover();
    let from = End { mac: MAC, ip: [192, 0, 2, 2], port: 4000 };
    let port = server.local_addr().unwrap().port();
    let mac = guest.resolve();
    for ip in [[127, 0, 0, 1], [127, 9, 9, 9], [0; 4], [192, 0, 2, 1], [198, 51, 100, 1]] {
        guest.send(&udp(&from, &End { mac, ip, port }, &ip, |_| 0));
    }
    let mut bytes = [0; 100];
    let (len, _) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..len], [198, 51, 100, 1]);
}

#[test]
fn frames_for_the_loopback_are_known() {
    let v4 = |ip: [u8; 4]| [&[0; 12][..], &[8, 0], &[0x45; 16], &ip, &[9; 20]].concat();
    let v6 = |ip: &str| {
        let ip = ip.parse::<std::net::Ipv6Addr>().unwrap().octets();
        [&[0; 12][..], &[0x86, 0xdd], &[0x60; 24], &ip].concat()
    };
    for own in [[127, 0, 0, 1], [127, 255, 255, 255], [0; 4], [0, 1, 2, 3]] {
        assert!(!is_for_others(&v4(own)), "{own:?}");
    }
    for other in [[128, 0, 0, 1], [10, 0, 0, 1], [255; 4], [1, 127, 127, 127]] {
        assert!(is_for_others(&v4(other)), "{other:?}");
    }
    for own in ["::", "::1", "::127.0.0.1", "::ffff:127.0.0.1"] {
        assert!(!is_for_others(&v6(own)), "{own}");
    }
    for other in ["fe80::1", "2001:db8::1", "ff02::1", "::1:0:0:1", "::ffff:0:7f00:1", "64:ff9b::7f00:1"] {
        assert!(is_for_others(&v6(other)), "{other}");
    }
    assert!(is_for_others(&[[0; 12], [8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()));
    assert!(!is_for_others(&v4([10, 0, 0, 1])[..33]) && !is_for_others(&v6("fe80::1")[..53]));
}

#[test]
fn taken_ports_are_found_early() {
    if !ready("net::user::tests::taken_ports_are_found_early") {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:7080").unwrap();
    let config = |text| serde_json::from_str::<Config>(text).unwrap();
    let error = User::open(&config(r#"{"publish": ["7080:80"]}"#)).err().unwrap();
    assert_eq!(error.to_string(), "Cannot publish tcp port [::]:7080");
    User::open(&config(r#"{"publish": ["7080:80/udp", "198.51.100.1:7080:80"]}"#)).unwrap();
    drop(taken);
    // Of two that have not begun, one has it.
    let first = User::open(&config(r#"{"publish": ["7080:80"]}"#)).unwrap();
    assert!(User::open(&config(r#"{"publish": ["7080:80"]}"#)).is_err());
    drop(first);
    User::open(&config(r#"{"publish": ["7080:80"]}"#)).unwrap();
}

/// Processes of passt that have `parent`.
fn children(parent: u32) -> Vec<u32> {
    let stat = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_ours = |pid: &u32| {
        let stat = stat(pid);
        let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
        name.contains("(passt") && rest.split(' ').nth(2) == Some(&parent.to_string())
    };
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        sleep(Duration::from_millis(2));
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn passt_ends_with_its_link() {
    if !ready("net::user::tests::passt_ends_with_its_link") {
        return;
    }
    let mut guest = Guest::new("{}");
    guest.discover();
    let [passt] = children(std::process::id())[..] else { panic!("one passt was expected") };
    drop(guest);
    wait_until("passt is waited for", || !std::fs::exists(format!("/proc/{passt}")).unwrap());
}

#[test]
fn passt_ends_when_this_process_is_killed() {
    let test = "net::user::tests::passt_ends_when_this_process_is_killed";
    if std::env::var_os("RVMM_TEST_VICTIM").is_some() {
        let mut guest = Guest::new("{}");
        guest.discover();
        std::io::stderr().write_all(b"up\n").unwrap();
        sleep(6 * PATIENCE);
        return;
    }
    if !ready(test) {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("RVMM_TEST_VICTIM", "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(victim.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let [passt] = children(victim.id())[..] else { panic!("one passt was expected") };
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("passt ends", || !is_alive(passt));
}

#[test]
fn the_link_goes_down_with_passt() {
    if !ready("net::user::tests::the_link_goes_down_with_passt") {
        return;
    }
    let mut guest = Guest::new("{}");
    guest.discover();
    let [passt] = children(std::process::id())[..] else { panic!("one passt was expected") };
    assert!(Command::new("kill").arg(passt.to_string()).status().unwrap().success());
    let buffers = guest.buffers(MAX_FRAME);
    wait_until("the link goes down", || guest.user.receive(&buffers).is_err());
    assert_eq!(guest.user.room().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(guest.user.send(&guest.buffers(100)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}
