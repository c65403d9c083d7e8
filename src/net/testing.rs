//! What tests of networking need: a network namespace of their own, and frames made by hand.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::tap::Tap;
use super::user;
use crate::testing::skip;

/// Set in the process that a test runs itself in.
const INSIDE: &str = "RVMM_TEST_NAMESPACE";

/// Runs the test named `test` (its full path) again in a process with user, network and mount namespaces of its own, where
/// it may do everything. True in that process; false outside, when it is done, or cannot be done here.
pub fn in_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "--"]).stdin(Stdio::null());
        command
    };
    let possible = unshare().args(["ip", "link", "set", "lo", "up"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        skip("namespaces, unshare and ip are needed");
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let again =
        unshare().arg(program).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    let errors = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && text.contains("1 passed"), "in the namespace: {text}\n{errors}");
    if errors.contains("skipped") {
        let _ = io::stderr().write_all(&again.stderr);
    }
    false
}

/// As [`in_namespace`], with passt at hand and a way out that leads nowhere. The host is 192.0.2.2 with the gateway
/// 192.0.2.1; what is not local to it but answers is 198.51.100.1.
pub fn passt_in_namespace(test: &str) -> bool {
    if !user::installed() {
        skip("passt is not installed");
        return false;
    }
    if !in_namespace(test) {
        return false;
    }
    ip("link set lo up");
    // Not every kernel has dummy interfaces.
    std::mem::forget(Tap::open("out").unwrap());
    ip("addr add 192.0.2.2/24 dev out");
    ip("route add default via 192.0.2.1");
    ip("addr add 198.51.100.1/32 dev lo");
    true
}

/// Runs `ip` with these arguments.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs `program` with these arguments, which must go well.
pub fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The sum of RFC 1071 over `parts`, not inverted. Every part but the last has an even length.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded + (folded >> 16)) as u16
}

/// Where a datagram comes from or goes to.
pub struct End {
    pub mac: [u8; 6],
    pub ip: [u8; 4],
    pub port: u16,
}

/// An Ethernet frame with a UDP datagram over IPv4, whose UDP checksum is `checksum`.
pub fn udp(from: &End, to: &End, payload: &[u8], checksum: impl FnOnce(u16) -> u16) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend((20 + len).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    header.extend(from.ip.iter().chain(&to.ip));
    let header_sum = !sum(&[&header]);
    header[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut datagram: Vec<u8> =
        [from.port, to.port, len].iter().flat_map(|word| word.to_be_bytes()).collect();
    let pseudo = sum(&[&from.ip, &to.ip, &[0, 17], &len.to_be_bytes()]);
    datagram.extend(checksum(pseudo).to_be_bytes());
    datagram.extend(payload);
    [&to.mac[..], &from.mac, &[8, 0], &header, &datagram].concat()
}
