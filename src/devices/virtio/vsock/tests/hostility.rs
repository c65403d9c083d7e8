//! Guests and clients that mean harm, or do not know better.

use super::super::exchange::{MAX_CONNECTIONS, MAX_GREETINGS, MAX_REPLIES};
use super::super::packet::{NO_RECEIVE, NO_SEND};
use super::*;
use crate::devices::virtio::mock::hostile;
use crate::testing::Random;

#[test]
fn survives_a_hostile_driver() {
    let directory = tempfile::tempdir().unwrap();
    let stray = Peer { host: 7, guest: 9, buf_alloc: 0, fwd_cnt: 0 }.header(op::RW).encode();
    hostile::suite(
        move || {
            // The suite keeps one device while it makes the next.
            let path = directory.path().join(format!("{}.sock", Random(now_nanos()).next()));
            let config = Config { guest_cid: CID as u32, uds_path: Some(path), vsock_id: None };
            crate::devices::virtio::Config::open(&config, &mock::context()).unwrap()
        },
        move |driver| {
            driver.submit(RECEIVE, &[], &[100]);
            driver.submit(TRANSMIT, &[&stray], &[]);
            assert!(driver.used(TRANSMIT).is_some());
            assert_eq!(driver.used(RECEIVE).map(|used| used.len), Some(HEADER as u32));
        },
    );
}

fn now_nanos() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
}

#[test]
fn packets_that_make_no_sense() {
    let mut guest = Guest::new();
    let service = guest.service(1);
    let peer = Peer { host: 1, guest: 9, buf_alloc: 0, fwd_cnt: 0 };
    let request = peer.header(op::REQUEST);
    // In the name of another guest, or no packet at all: no answer.
    guest.send(&Header { src_cid: 4, ..request }, &[]);
    guest.send(&Header { src_cid: CID | 1 << 32, ..request }, &[]);
    guest.driver.submit(TRANSMIT, &[&request.encode()[..HEADER - 1]], &[]);
    guest.driver.submit(TRANSMIT, &[], &[100]);
    assert!(guest.driver.used(TRANSMIT).is_some() && guest.driver.used(TRANSMIT).is_some());
    guest.send(&Header { op: op::RST, ..request }, &[]);
    guest.expect_nothing();
    // Refused: another type, another host, operations without a connection, more data than there is.
    guest.send(&Header { kind: 2, ..request }, &[]);
    assert_eq!(guest.expect(op::RST).kind, 2);
    guest.send(&Header { dst_cid: 5, ..request }, &[]);
    guest.expect_reset_from(5);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xffff] {
        guest.send(&Header { op, ..request }, &[]);
        guest.expect(op::RST);
    }
    guest.send(&Header { len: 1, ..request }, &[]);
    guest.expect(op::RST);
    // Each of these ends a connection that exists.
    for wrong in [
        request,
        Header { op: op::RESPONSE, ..request },
        Header { op: 0, ..request },
        Header { op: 99, ..request },
        Header { kind: 2, op: op::RW, ..request },
        Header { op: op::RW, len: 5, ..request },
        Header { op: op::RW, len: u32::MAX, ..request },
    ] {
        let (mut stream, _) = guest.reach(&service, 1);
        guest.send(&Header { src_port: 5001, ..wrong }, b"1234");
        guest.expect(op::RST);
        assert_eq!(now(&mut stream), None, "{wrong:?}");
    }
    // Data behind what the header counts is nobody's.
    let (mut stream, peer) = guest.reach(&service, 1);
    guest.send(&peer.data(b"12"), b"1234");
    assert_eq!(now(&mut stream), Some(b"12".to_vec()));
    guest.send(&peer.shutdown(NO_SEND), &[]);
    guest.send(&peer.data(b"12"), b"12");
    guest.expect(op::RST);
}

impl Guest {
    /// Takes the next packet, a reset in the name of another host.
    fn expect_reset_from(&mut self, cid: u64) {
        let used = self.driver.used(RECEIVE).unwrap();
        let address = HIGH + u64::from(used.head / 2) * BUFFER as u64;
        let mut bytes = [0; HEADER];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let header = Header::decode(&bytes);
        assert_eq!((header.src_cid, header.dst_cid, header.op), (cid, CID, op::RST));
        self.post(used.head / 2);
    }
}

#[test]
fn scattered_packets_are_whole() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.accept_client();
    let header = peer.data(b"abcdef").encode();
    guest.driver.submit(TRANSMIT, &[&header[..10], &header[10..], b"a", b"", b"bcd", b"ef"], &[]);
    assert!(guest.driver.used(TRANSMIT).is_some());
    assert_eq!(now(&mut client), Some(b"abcdef".to_vec()));
}

#[test]
fn receive_buffers_without_room_are_a_violation() {
    for room in [HEADER - 1, HEADER] {
        let mut guest = Guest::without_buffers();
        let mut client = guest.client("CONNECT 1\n");
        // The request and the answer to it go through.
        let table = guest.driver.rings[RECEIVE].descriptors;
        guest.driver.descriptor(table, 0, HIGH, HEADER as u32, WRITE, 0);
        guest.driver.offer(RECEIVE, 0);
        guest.driver.kick(RECEIVE);
        let used = guest.driver.used(RECEIVE).unwrap();
        assert_eq!(used.len as usize, HEADER);
        let mut bytes = [0; HEADER];
        guest.driver.memory.read_slice(&mut bytes, GuestAddress(HIGH)).unwrap();
        let peer = Peer::of(&Header::decode(&bytes));
        guest.send(&peer.header(op::RESPONSE), &[]);
        client.write_all(b"data").unwrap();
        guest.driver.descriptor(table, 1, HIGH, room as u32, WRITE, 0);
        guest.driver.offer(RECEIVE, 1);
        guest.driver.kick(RECEIVE);
        assert!(guest.driver.needs_reset());
        guest.driver.start(u64::MAX);
        (0..BUFFERS).for_each(|index| guest.post(index));
        guest.accept_client();
    }
}

#[test]
fn a_flood_of_strays_waits_until_answers_are_fetched() {
    let mut guest = Guest::without_buffers();
    let stray = Peer { host: 1, guest: 2, buf_alloc: 0, fwd_cnt: 0 }.header(op::RW);
    let (mut offered, mut taken) = (0, 0);
    let mut idle = 0;
    while idle < 200 {
        guest.driver.submit(TRANSMIT, &[&stray.encode()], &[]);
        offered += 1;
        idle += 1;
        while guest.driver.used(TRANSMIT).is_some() {
            taken += 1;
            idle = 0;
        }
    }
    assert_eq!(taken, MAX_REPLIES);
    (0..BUFFERS).for_each(|index| guest.post(index));
    let mut answers = 0;
    while answers < offered {
        guest.expect(op::RST);
        answers += 1;
        guest.driver.work();
    }
    guest.expect_nothing();
    while guest.driver.used(TRANSMIT).is_some() {
        taken += 1;
    }
    assert_eq!(taken, offered);
}

#[test]
fn a_guest_holds_so_many_connections_and_no_more() {
    let mut guest = Guest::new();
    let service = guest.service(1);
    let mut streams = Vec::new();
    let peer = |port| Peer { host: 1, guest: port, buf_alloc: 1, fwd_cnt: 0 };
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(&peer(port).header(op::REQUEST), &[]);
        guest.expect(op::RESPONSE);
        streams.push(service.accept().unwrap());
    }
    guest.send(&peer(100_000).header(op::REQUEST), &[]);
    guest.expect(op::RST);
    // A client waits until there is room.
    let _client = guest.client("CONNECT 5\n");
    guest.expect_nothing();
    guest.send(&peer(7).shutdown(NO_SEND | NO_RECEIVE), &[]);
    guest.expect(op::RST);
    guest.expect(op::REQUEST);
    guest.send(&peer(100_000).header(op::REQUEST), &[]);
    guest.expect(op::RST);
}

#[test]
fn clients_that_say_nothing_give_way() {
    let mut guest = Guest::new();
    let mut silent: Vec<_> = (0..MAX_GREETINGS + 10)
        .map(|_| {
            let client = guest.client("CONN");
            guest.driver.work();
            client
        })
        .collect();
    guest.expect_nothing();
    for (place, client) in silent.iter_mut().enumerate() {
        assert_eq!(now(client).is_none(), place < 10, "{place}");
    }
    let _other = guest.accept_client();
    // Those who are still there can go on.
    let last = silent.last_mut().unwrap();
    last.write_all(b"ECT 77\n").unwrap();
    assert_eq!(guest.expect(op::REQUEST).dst_port, 77);
}

#[test]
fn clients_come_and_go_while_the_guest_sleeps() {
    let mut guest = Guest::without_buffers();
    for _ in 0..3000 {
        let client = guest.client("CONNECT 5\n");
        guest.driver.work();
        drop(client);
        guest.driver.work();
    }
    (0..BUFFERS).for_each(|index| guest.post(index));
    guest.expect_nothing();
    guest.accept_client();
}

/// Anything at all, by a guest that knows the form of packets, while clients do anything at all.
#[test]
fn survives_random_packets() {
    let mut random = Random(5);
    for _ in 0..8 {
        let mut guest = Guest::new();
        let service = guest.service(1);
        let (mut clients, mut streams) = (Vec::new(), Vec::new());
        service.set_nonblocking(true).unwrap();
        for _ in 0..1000 {
            match random.below(12) {
                0 if clients.len() < 50 => {
                    let text = random.pick(&["CONNECT 5\n", "CONN", "x\n", "CONNECT 6\nabc"]);
                    clients.push(guest.client(text));
                }
                1 if !clients.is_empty() => drop(clients.swap_remove(random.below(clients.len() as u64) as usize)),
                2 if !streams.is_empty() => drop(streams.swap_remove(random.below(streams.len() as u64) as usize)),
                3 if !clients.is_empty() => {
                    let place = random.below(clients.len() as u64) as usize;
                    let client: &mut UnixStream = &mut clients[place];
                    client.set_nonblocking(true).unwrap();
                    let _ = client.write(&random.bytes(random_len(random.0)));
                }
                _ => {}
            }
            streams.extend(service.accept().map(|(stream, _)| stream));
            let data = random.bytes(random_len(random.0));
            let odd = random.once_in(8);
            let header = Header {
                src_cid: CID,
                dst_cid: HOST_CID,
                src_port: random.pick(&[5, 6, 7, 8]),
                dst_port: random.pick(&[1, 2, 1 << 30, (1 << 30) + 1, (1 << 30) + 2]),
                len: if odd { random.next() as u32 } else { data.len() as u32 },
                kind: if odd { random.below(3) as u16 } else { STREAM },
                op: random.below(9) as u16,
                flags: random.below(5) as u32,
                buf_alloc: random.pick(&[0, 100, 1 << 20, u32::MAX]),
                fwd_cnt: random.pick(&[0, 0, 50, u32::MAX]),
            };
            guest.driver.submit(TRANSMIT, &[&header.encode(), &data], &[]);
            while guest.driver.used(TRANSMIT).is_some() {}
            if random.once_in(3) {
                guest.fetch();
                guest.packets.clear();
            }
            assert!(!guest.driver.needs_reset());
        }
        drop((clients, streams, service));
        guest.driver.work();
        guest.fetch();
        guest.packets.clear();
        guest.driver.start(u64::MAX);
        (0..BUFFERS).for_each(|index| guest.post(index));
        guest.accept_client();
    }
}

fn random_len(seed: u64) -> usize {
    let mut random = Random(seed);
    random.pick(&[0, 0, 1, 100, 5000, 30_000])
}
