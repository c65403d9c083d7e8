//! Frames between a driver and the host's own sockets, through a tap in a network namespace.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::wire::Guest;
use super::{ALL_GUEST, MERGE, RECEIVE, TRANSMIT};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mock::hostile;
use crate::devices::virtio::net::Net;
use crate::net::tap::Tap;
use crate::net::testing::{End, in_namespace, ip, sum, udp};
use crate::net::{HEADER, MAX_FRAME};
use crate::testing::PATIENCE;

/// Bytes of one receive buffer.
const BUFFER: usize = 1526;

const GUEST: End = End { mac: [2, 0, 0, 0, 0, 2], ip: [10, 9, 0, 2], port: 4000 };

/// A driver with small receive buffers, and what came in.
struct Machine {
    guest: Guest,
    partial: Vec<u8>,
    inbox: VecDeque<(Vec<u8>, Vec<u8>)>,
}

impl Machine {
    fn new(tap: &str, features: u64) -> Self {
        let mac = "02:00:00:00:00:02".parse().unwrap();
        let net = Net::new("eth0".into(), mac, Box::new(Tap::open(tap).unwrap()));
        let mut guest = Guest::new(Box::new(net), features);
        for _ in 0..100 {
            guest.give(&[BUFFER]);
        }
        guest.kick(RECEIVE);
        Machine { guest, partial: Vec::new(), inbox: VecDeque::new() }
    }

    /// Waits for the next packet of `protocol` over IPv4: header, then frame.
    fn receive(&mut self, protocol: u8) -> (Vec<u8>, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(packet) = self.inbox.pop_front() {
                return packet;
            }
            self.guest.ready();
            for (head, len) in self.guest.used(RECEIVE) {
                self.partial.extend(self.guest.received(head, len));
                self.guest.give(&[BUFFER]);
                let count = u16::from_le_bytes([self.partial[10], self.partial[11]]);
                if self.partial.len() <= BUFFER * (usize::from(count) - 1) {
                    continue;
                }
                let mut header = std::mem::take(&mut self.partial);
                let frame = header.split_off(HEADER);
                if frame[12..14] == [8, 0] && frame[23] == protocol {
                    self.inbox.push_back((header, frame));
                }
            }
            sleep(Duration::from_millis(1));
        }
        panic!("no packet came");
    }
}

#[test]
fn a_driver_talks_to_sockets_of_the_host() {
    if !in_namespace("devices::virtio::net::tests::tap::a_driver_talks_to_sockets_of_the_host") {
        return;
    }
    let mut machine = Machine::new("tap0", ALL_GUEST);
    ip("link set tap0 address 02:00:00:00:00:01");
    ip("addr add 10.9.0.1/24 dev tap0");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev tap0");
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = End {
        mac: [2, 0, 0, 0, 0, 1],
        ip: [10, 9, 0, 1],
        port: socket.local_addr().unwrap().port(),
    };

    // To the guest: the checksum is left to it, as it has agreed.
    socket.send_to(b"hello guest", "10.9.0.2:4000").unwrap();
    let (header, frame) = machine.receive(17);
    assert_eq!(header, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    assert_eq!(frame[42..], *b"hello guest");
    let guest = &mut machine.guest;

    // From the guest, with a checksum that the host has to make, and with one that is wrong.
    let whole = udp(&GUEST, &host, b"hello host", |pseudo| pseudo);
    let partial = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    guest.transmit(&[&[0; HEADER], &udp(&GUEST, &host, b"bad", |_| 0x1234)]);
    guest.transmit(&[&partial[..7], &partial[7..], &whole[..30], &whole[30..]]);
    guest.kick(TRANSMIT);
    assert_eq!(guest.used(TRANSMIT).len(), 2);
    let mut bytes = [0; 100];
    let (len, from) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from.to_string().as_str()), (&b"hello host"[..], "10.9.0.2:4000"));

    // A header that makes no sense loses its frame only.
    let nonsense = [1, 5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    guest.transmit(&[&nonsense, &whole]);
    guest.transmit(&[&vec![0xff; MAX_FRAME]]);
    guest.transmit(&[&[0; HEADER], &udp(&GUEST, &host, b"again", |_| 0)]);
    guest.kick(TRANSMIT);
    assert_eq!(guest.used(TRANSMIT).len(), 3);
    let (len, _) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..len], *b"again");

    // The tap goes away: the link is down, and nothing hangs.
    ip("link del tap0");
    guest.ready();
    assert_eq!(guest.config()[6], 0, "the link is up");
    guest.transmit(&[&[0; HEADER], &whole]);
    guest.kick(TRANSMIT);
    assert_eq!(guest.used(TRANSMIT).len(), 1);
}

/// A TCP segment of 40 000 bytes to `to` that is to be cut into pieces of 1448, with its virtio header.
fn segment(to: &End) -> Vec<u8> {
    let payload: Vec<u8> = (0..40_000_u32).map(|i| (i >> 4) as u8).collect();
    let whole = udp(&GUEST, to, &payload, |_| 0);
    let mut ip = whole[14..34].to_vec();
    let len = 20 + payload.len() as u16;
    ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    ip[9] = 6;
    ip[10..12].fill(0);
    let check = !sum(&[&ip]);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[0x0f, 0xa0, 0x0f, 0xa0]);
    // Five words of header; the flag ACK; the largest window.
    tcp[12..16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    let pseudo = sum(&[&GUEST.ip, &to.ip, &[0, 6], &len.to_be_bytes()]);
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    [&header, &whole[..14], &ip, &tcp, &payload].concat()
}

/// The host is a router between guests: it hands a large segment from one to another, whole or in pieces.
#[test]
fn large_segments_pass_between_guests() {
    if !in_namespace("devices::virtio::net::tests::tap::large_segments_pass_between_guests") {
        return;
    }
    let machine = |i: u8, features| {
        let machine = Machine::new(&format!("tap{i}"), features);
        ip(&format!("link set tap{i} address 02:00:00:00:00:01"));
        ip(&format!("addr add 10.9.{i}.1/24 dev tap{i}"));
        ip(&format!("neigh add 10.9.{i}.2 lladdr 02:00:00:00:00:0{i} dev tap{i}"));
        machine
    };
    let mut sender = machine(0, ALL_GUEST).guest;
    let mut whole = machine(1, ALL_GUEST);
    let mut pieces = machine(2, MERGE);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let to = |i| End { mac: [2, 0, 0, 0, 0, 1], ip: [10, 9, i, 2], port: 4000 };

    let sent = segment(&to(1));
    sender.transmit(&[&sent[..100], &sent[100..]]);
    sender.kick(TRANSMIT);
    let (header, frame) = whole.receive(6);
    assert_eq!((header[1], &header[10..]), (1, &[27, 0][..]));
    assert!(frame[34..] == sent[HEADER + 34..]);

    let sent = segment(&to(2));
    sender.transmit(&[&sent]);
    sender.kick(TRANSMIT);
    let mut payload = Vec::new();
    while payload.len() < 40_000 {
        let (header, frame) = pieces.receive(6);
        assert_eq!((&header[..], frame.len() <= 1514), (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], true));
        let len = (frame.len() as u16 - 34).to_be_bytes();
        assert_eq!(sum(&[&GUEST.ip, &to(2).ip, &[0, 6], &len, &frame[34..]]), 0xffff, "the checksum");
        payload.extend_from_slice(&frame[54..]);
    }
    assert!(payload == sent[HEADER + 54..]);
}

#[test]
fn survives_a_hostile_driver() {
    if !in_namespace("devices::virtio::net::tests::tap::survives_a_hostile_driver") {
        return;
    }
    let make = || -> Box<dyn VirtioDevice> {
        let tap = Tap::open("tap0").unwrap();
        Box::new(Net::new("eth0".into(), "02:00:00:00:00:02".parse().unwrap(), Box::new(tap)))
    };
    hostile::suite(make, |driver| {
        let packet = udp(&GUEST, &GUEST, b"hello", |_| 0);
        assert!(driver.try_request(TRANSMIT, &[&[0; HEADER], &packet], 0).is_some());
        // The host's own chatter, if nothing else, finds this chain.
        driver.submit(RECEIVE, &[], &[HEADER + 1518]);
        assert!(!driver.needs_reset());
    });
}
