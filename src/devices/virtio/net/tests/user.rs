//! Frames between a driver and the host's own sockets, through passt in a network namespace.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::wire::Guest;
use super::{MERGE, RECEIVE, TRANSMIT};
use crate::devices::virtio::net::Net;
use crate::net::HEADER;
use crate::net::testing::{End, passt_in_namespace, udp};
use crate::net::user::{Config, User};
use crate::testing::PATIENCE;

/// Lets the device work as its worker does, woken by edges alone, until `done`.
fn until(guest: &mut Guest, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done(guest) {
        assert!(Instant::now() < end, "in vain: {what}");
        guest.driver.wait(Duration::from_millis(2));
    }
}

#[test]
fn much_goes_both_ways_and_nothing_hangs() {
    if !passt_in_namespace("devices::virtio::net::tests::user::much_goes_both_ways_and_nothing_hangs") {
        return;
    }
    let user = User::open(&Config::default()).unwrap();
    let net = Net::new("eth0".into(), "02:00:00:00:00:02".parse().unwrap(), Box::new(user));
    let mut guest = Guest::new(Box::new(net), MERGE);
    let server = UdpSocket::bind("198.51.100.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let from = End { mac: [2, 0, 0, 0, 0, 2], ip: [192, 0, 2, 2], port: 4000 };
    let port = server.local_addr().unwrap().port();
    let to = End { mac: [0xff; 6], ip: [198, 51, 100, 1], port };

    // More than the socket to passt holds, again and again: the device waits for room.
    let large = udp(&from, &to, &[1; 60_000], |_| 0);
    for _ in 0..50 {
        for _ in 0..8 {
            guest.transmit(&[&[0; HEADER], &large]);
        }
        guest.driver.kick(TRANSMIT);
        let mut sent = 0;
        until(&mut guest, "all frames are sent", |guest| {
            sent += guest.used(TRANSMIT).len();
            sent == 8
        });
    }
    let mut bytes = vec![0; 60_001];
    let (len, source) = server.recv_from(&mut bytes).unwrap();
    assert!(bytes[..len] == [1; 60_000]);

    // Datagrams that need many buffers. When these are used up, what waits comes with the next ones.
    for _ in 0..140 {
        guest.give(&[1000]);
    }
    guest.driver.kick(RECEIVE);
    let payload: Vec<u8> = (0..9000_u32).map(|i| i as u8).collect();
    for _ in 0..20 {
        for _ in 0..4 {
            server.send_to(&payload, source).unwrap();
        }
        let (mut frame, mut datagrams) = (Vec::new(), 0);
        until(&mut guest, "all datagrams arrive", |guest| {
            for (head, len) in guest.used(RECEIVE) {
                frame.extend(guest.received(head, len));
                if frame.len() == HEADER + 42 + payload.len() {
                    assert!(frame[HEADER + 42..] == payload);
                    datagrams += 1;
                    frame.clear();
                }
            }
            if datagrams < 4 {
                for _ in 0..5 {
                    guest.give(&[1000]);
                }
                guest.driver.kick(RECEIVE);
            }
            datagrams == 4
        });
    }
    assert_eq!(guest.config()[6], 1, "the link is down");
}
