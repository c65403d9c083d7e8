//! Connections begin and end.

use std::net::Shutdown;

use super::super::packet::{NO_RECEIVE, NO_SEND};
use super::*;
use crate::bus::BusDevice;
use crate::snapshot::Persist;

#[test]
fn says_what_it_is() {
    let guest = Guest::new();
    assert_eq!(guest.driver.read(0x08), 19);
    assert_eq!(guest.driver.config(0, 10), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut byte = [0xff];
    guest.driver.registers.read(0x108, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn a_client_talks_to_the_guest() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.accept_client();
    client.write_all(b"hello").unwrap();
    let (header, data) = guest.packet();
    assert_eq!((header.op, &data[..]), (op::RW, &b"hello"[..]));
    guest.send(&peer.data(b"world"), b"world");
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
    guest.send(&peer.shutdown(NO_SEND | NO_RECEIVE), &[]);
    assert_eq!(Peer::of(&guest.expect(op::RST)), peer);
    assert_eq!(now(&mut client), None);
}

#[test]
fn what_follows_the_line_reaches_the_guest() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONN");
    guest.expect_nothing();
    client.write_all(b"ECT 80\nGET /").unwrap();
    let request = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 80);
    guest.expect_nothing();
    guest.send(&Peer::of(&request).header(op::RESPONSE), &[]);
    assert_eq!(guest.packet().1, b"GET /");
}

#[test]
fn clients_have_ports_of_their_own() {
    let mut guest = Guest::new();
    let (_a, first) = guest.accept_client();
    let (_b, second) = guest.accept_client();
    assert!(first.host != second.host && first.guest == second.guest);
}

#[test]
fn a_refused_client_sees_the_end() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 9\n");
    let request = guest.expect(op::REQUEST);
    guest.send(&Peer::of(&request).header(op::RST), &[]);
    assert_eq!(now(&mut client), None);
    let mut client = guest.client("HELO\n");
    guest.expect_nothing();
    assert_eq!(now(&mut client), None);
}

#[test]
fn a_client_may_leave_early() {
    let mut guest = Guest::without_buffers();
    drop(guest.client("CONNECT 9\n"));
    guest.driver.work();
    // It left before the guest knew of it.
    (0..4).for_each(|index| guest.post(index));
    guest.expect_nothing();
    let client = guest.client("CONNECT 9\n");
    let request = guest.expect(op::REQUEST);
    drop(client);
    assert_eq!(Peer::of(&guest.expect(op::RST)), Peer::of(&request));
    // The guest's answer crosses the reset.
    guest.send(&Peer::of(&request).header(op::RESPONSE), &[]);
    guest.expect(op::RST);
}

#[test]
fn the_guest_talks_to_a_service() {
    let mut guest = Guest::new();
    let service = guest.service(52);
    let (mut stream, peer) = guest.reach(&service, 52);
    guest.send(&peer.data(b"ping"), b"ping");
    assert_eq!(now(&mut stream), Some(b"ping".to_vec()));
    stream.write_all(b"pong").unwrap();
    assert_eq!(guest.packet().1, b"pong");
    guest.send(&peer.header(op::RST), &[]);
    assert_eq!(now(&mut stream), None);
    guest.expect_nothing();
}

#[test]
fn a_service_that_is_not_there_refuses() {
    let mut guest = Guest::new();
    let peer = Peer { host: 53, guest: 1, buf_alloc: 0, fwd_cnt: 0 };
    guest.send(&peer.header(op::REQUEST), &[]);
    guest.expect(op::RST);
    // Neither is what is no socket, nor what nobody listens at any more.
    std::fs::write(format!("{}_53", guest.path().display()), "").unwrap();
    guest.send(&peer.header(op::REQUEST), &[]);
    guest.expect(op::RST);
    drop(guest.service(54));
    guest.send(&Peer { host: 54, ..peer }.header(op::REQUEST), &[]);
    guest.expect(op::RST);
}

#[test]
fn a_busy_service_does_not_stop_the_device() {
    let mut guest = Guest::new();
    let service = guest.service(52);
    let mut accepted = 0;
    for port in 0..2000 {
        let peer = Peer { host: 52, guest: port, buf_alloc: 0, fwd_cnt: 0 };
        guest.send(&peer.header(op::REQUEST), &[]);
        let (answer, _) = guest.packet();
        if answer.op == op::RST {
            break;
        }
        accepted += 1;
    }
    assert!((1..=exchange::MAX_CONNECTIONS).contains(&accepted), "{accepted}");
    drop(service);
}

#[test]
fn the_host_closes_one_direction_or_both() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.accept_client();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.packet().1, b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, NO_SEND);
    // The guest can still answer.
    guest.send(&peer.data(b"answer"), b"answer");
    assert_eq!(now(&mut client), Some(b"answer".to_vec()));
    drop(client);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, NO_SEND | NO_RECEIVE);
    guest.send(&peer.header(op::RST), &[]);
    guest.expect_nothing();
    // Afterwards the connection is unknown.
    guest.send(&peer.data(b"more"), b"more");
    guest.expect(op::RST);
}

#[test]
fn all_that_a_client_sent_comes_before_the_end() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.accept_client();
    let bytes = crate::testing::Random(1).bytes(150_000);
    client.write_all(&bytes).unwrap();
    drop(client);
    let (mut got, mut closed) = (Vec::new(), 0);
    while closed & NO_SEND == 0 {
        let (header, data) = guest.packet();
        match header.op {
            op::RW => got.extend(data),
            op::SHUTDOWN => closed = header.flags,
            _ => panic!("{header:?}"),
        }
    }
    assert!(got == bytes);
}

#[test]
fn the_guest_closes_one_direction_or_both() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.accept_client();
    guest.send(&peer.data(b"all"), b"all");
    guest.send(&peer.shutdown(NO_SEND), &[]);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"all");
    client.write_all(b"still heard").unwrap();
    assert_eq!(guest.packet().1, b"still heard");
    guest.send(&peer.shutdown(NO_RECEIVE), &[]);
    guest.expect(op::RST);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);

    let (mut client, peer) = guest.accept_client();
    guest.send(&peer.shutdown(NO_RECEIVE), &[]);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(&peer.data(b"still said"), b"still said");
    assert_eq!(now(&mut client), Some(b"still said".to_vec()));
}

#[test]
fn what_the_guest_sent_goes_out_after_it_has_closed() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.accept_client();
    let mut sent = Vec::new();
    // More than the socket takes, so that some of it is kept.
    for _ in 0..30 {
        let bytes = crate::testing::Random(sent.len() as u64).bytes(10_000);
        guest.send(&peer.data(&bytes), &bytes);
        sent.extend(bytes);
        guest.driver.work();
    }
    guest.send(&peer.shutdown(NO_SEND | NO_RECEIVE), &[]);
    while guest.packet().0.op != op::RST {}
    // The ports are free: the guest may use them again, though the host could not have asked for that.
    peer.fwd_cnt = 0;
    guest.send(&peer.data(b"x"), b"x");
    guest.expect(op::RST);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(now(&mut client).expect("not the end"));
        guest.driver.work();
    }
    assert!(got == sent);
    assert_eq!(now(&mut client), None);
}

#[test]
fn a_reset_of_the_driver_ends_everything() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.accept_client();
    let mut early = guest.client("CONN");
    guest.driver.work();
    guest.driver.start(u64::MAX);
    assert_eq!((now(&mut client), now(&mut early)), (None, None));
    (0..BUFFERS).for_each(|index| guest.post(index));
    guest.accept_client();
}

/// What the guest does about an event: it takes the buffer, and gives it back.
fn event(guest: &mut Guest) -> Option<u32> {
    let used = guest.driver.used(EVENT)?;
    let mut bytes = [0; 4];
    guest.driver.memory.read_slice(&mut bytes, GuestAddress(HIGH + 0xf_0000)).unwrap();
    assert_eq!(used.len, 4);
    Some(u32::from_le_bytes(bytes))
}

fn post_events(guest: &mut Guest, count: u16) {
    let table = guest.driver.rings[EVENT].descriptors;
    for index in 0..count {
        guest.driver.descriptor(table, index, HIGH + 0xf_0000, 4, WRITE, 0);
        guest.driver.offer(EVENT, index);
    }
    guest.driver.kick(EVENT);
}

/// A guest with an open connection and event buffers, saved and loaded into a new device.
fn restored(events: u16) -> (Guest, UnixStream, Peer) {
    let mut guest = Guest::new();
    post_events(&mut guest, events);
    guest.driver.memory.write_slice(&[0xff; 4], GuestAddress(HIGH + 0xf_0000)).unwrap();
    let (client, peer) = guest.accept_client();
    let mut function = guest.driver.function.lock().unwrap();
    function.freeze();
    let saved = function.save();
    drop(function);
    // A copy of the machine: same memory, another device.
    let directory = tempfile::tempdir().unwrap();
    let driver = guest.driver.restored(Driver::new(device(&directory)), &saved);
    guest = Guest { driver, directory, ..guest };
    (guest, client, peer)
}

#[test]
fn a_restored_guest_learns_that_its_connections_are_gone() {
    let (mut guest, _source, old) = restored(4);
    let mut client = guest.client("CONNECT 1024\n");
    guest.driver.work();
    assert_eq!(event(&mut guest), Some(TRANSPORT_RESET));
    // The guest does not know yet that its old connections are gone: it would not tell a new one from them.
    guest.send(&old.data(b"x"), b"x");
    guest.expect_nothing();
    guest.driver.offer(EVENT, 0);
    guest.driver.kick(EVENT);
    assert_eq!(event(&mut guest), None, "it is told once");
    let answers = [guest.packet().0, guest.packet().0];
    assert_eq!(answers.map(|header| header.op), [op::RST, op::REQUEST]);
    assert_eq!(Peer::of(&answers[0]), old);
    guest.send(&Peer::of(&answers[1]).header(op::RESPONSE), &[]);
    assert!(line(&mut client).starts_with("OK "));
}

#[test]
fn a_guest_that_was_not_told_yet_is_waited_for() {
    // It may stand still for a while, or be very busy.
    let (mut guest, _source, _) = restored(1);
    let mut client = guest.client("CONNECT 1024\n");
    guest.driver.work();
    guest.driver.wait(Duration::from_millis(1500));
    guest.expect_nothing();
    assert_eq!(event(&mut guest), Some(TRANSPORT_RESET));
    post_events(&mut guest, 1);
    let request = guest.expect(op::REQUEST);
    guest.send(&Peer::of(&request).header(op::RESPONSE), &[]);
    assert!(line(&mut client).starts_with("OK "));
    // One without buffers is told as soon as it has some.
    let (mut guest, _source, _) = restored(0);
    guest.expect_nothing();
    post_events(&mut guest, 2);
    assert_eq!(event(&mut guest), Some(TRANSPORT_RESET));
}

#[test]
fn refuses_the_state_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut device = device(&directory);
    let good = device.save();
    device.load(&good).unwrap();
    for bad in [
        Saved { kind: "virtio-rng".into(), ..good.clone() },
        Saved { version: 2, ..good.clone() },
        Saved { data: serde_json::json!({ "a": 1 }), ..good },
    ] {
        assert!(device.load(&bad).is_err(), "{bad:?}");
    }
}
