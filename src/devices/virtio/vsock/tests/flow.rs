//! Bytes flow no faster than each side takes them, and no connection waits for another.

use std::thread;

use super::super::credit::WINDOW;
use super::super::packet::NO_SEND;
use super::*;
use crate::testing::{Random, within};

#[test]
fn the_guest_gets_what_it_has_room_for() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 1\n");
    let request = guest.expect(op::REQUEST);
    let mut peer = Peer { buf_alloc: 10, ..Peer::of(&request) };
    guest.send(&peer.header(op::RESPONSE), &[]);
    client.write_all(b"0123456789abcdefghij").unwrap();
    assert_eq!(guest.packet().1, b"0123456789");
    guest.expect(op::CREDIT_REQUEST);
    guest.expect_nothing();
    peer.fwd_cnt = 4;
    guest.send(&peer.header(op::CREDIT_UPDATE), &[]);
    assert_eq!(guest.packet().1, b"abcd");
    guest.expect(op::CREDIT_REQUEST);
    // What contradicts itself is no room.
    guest.send(&Peer { buf_alloc: 0, fwd_cnt: 9, ..peer }.header(op::CREDIT_UPDATE), &[]);
    guest.send(&Peer { buf_alloc: 10, fwd_cnt: 15, ..peer }.header(op::CREDIT_UPDATE), &[]);
    guest.expect_nothing();
    // Its buffer may grow.
    guest.send(&Peer { buf_alloc: 100, fwd_cnt: 14, ..peer }.header(op::CREDIT_UPDATE), &[]);
    assert_eq!(guest.packet().1, b"efghij");
}

#[test]
fn counters_wrap() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.accept_client();
    // Nobody sends 4 GiB in a test: a guest that says so from the start has the same effect.
    peer.fwd_cnt = u32::MAX - 3;
    peer.buf_alloc = 8;
    guest.send(&peer.header(op::CREDIT_UPDATE), &[]);
    client.write_all(b"0123456789").unwrap();
    assert_eq!(guest.packet().1, b"0123", "4 of 8 are on their way");
    peer.fwd_cnt = 4;
    guest.expect(op::CREDIT_REQUEST);
    guest.send(&peer.header(op::CREDIT_UPDATE), &[]);
    assert_eq!(guest.packet().1, b"456789");
}

/// Sends until the window is full. Returns what was sent.
fn fill(guest: &mut Guest, peer: &Peer) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut known = 0;
    loop {
        while let Some((header, _)) = {
            guest.fetch();
            guest.packets.pop_front()
        } {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            known = header.fwd_cnt;
        }
        let room = WINDOW - (sent.len() as u32 - known);
        if room == 0 {
            return sent;
        }
        let bytes = Random(sent.len() as u64).bytes(room.min(50_000) as usize);
        guest.send(&peer.data(&bytes), &bytes);
        sent.extend(bytes);
    }
}

#[test]
fn a_slow_client_slows_only_its_own_connection() {
    let mut guest = Guest::new();
    let (mut slow, peer) = guest.accept_client();
    let sent = fill(&mut guest, &peer);
    assert!(sent.len() > WINDOW as usize);
    let (mut fast, other) = guest.accept_client();
    guest.send(&other.data(b"quick"), b"quick");
    assert_eq!(now(&mut fast), Some(b"quick".to_vec()));
    // The guest asks, and learns that there is still no room.
    guest.send(&peer.header(op::CREDIT_REQUEST), &[]);
    let answer = guest.expect(op::CREDIT_UPDATE);
    assert_eq!(answer.buf_alloc, WINDOW);
    let before = answer.fwd_cnt;
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(now(&mut slow).unwrap());
        guest.driver.work();
    }
    assert!(got == sent);
    let after = guest.expect(op::CREDIT_UPDATE).fwd_cnt;
    assert!(after > before && after as usize <= sent.len());
}

#[test]
fn a_guest_that_sends_without_credit_loses_the_connection() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.accept_client();
    fill(&mut guest, &peer);
    // It may have more than it knows, but not twice as much.
    for _ in 0..=WINDOW / 1024 {
        guest.send(&peer.data(&[1; 1024]), &[1; 1024]);
    }
    assert_eq!(Peer::of(&guest.expect(op::RST)), peer);
    while now(&mut client).is_some() {}
}

#[test]
fn a_client_that_leaves_ends_what_is_kept_for_it() {
    let mut guest = Guest::new();
    let (client, peer) = guest.accept_client();
    fill(&mut guest, &peer);
    drop(client);
    guest.driver.work();
    // It did not read all: the connection was broken off.
    loop {
        let (header, _) = guest.packet();
        match header.op {
            op::RST => break,
            op::SHUTDOWN | op::CREDIT_UPDATE => {}
            _ => panic!("{header:?}"),
        }
    }
    guest.send(&peer.data(b"x"), b"x");
    guest.expect(op::RST);
}

#[test]
fn buffers_are_shared_fairly() {
    let mut guest = Guest::without_buffers();
    guest.room = HEADER + 1000;
    (0..BUFFERS).for_each(|index| guest.post(index));
    let mut clients = [guest.accept_client(), guest.accept_client(), guest.accept_client()];
    for (client, _) in &mut clients {
        client.write_all(&[7; 40_000]).unwrap();
    }
    let mut got = [0; 3];
    for _ in 0..60 {
        let (header, data) = guest.packet();
        let place = clients.iter().position(|(_, peer)| peer.host == header.src_port).unwrap();
        got[place] += data.len();
    }
    assert!(got.iter().all(|&bytes| bytes > 10_000), "{got:?}");
}

/// Moves random pieces both ways until all has come.
fn exchange(mut guest: Guest, mut host: UnixStream, mut peer: Peer, seed: u64, total: usize) {
    let mut random = Random(seed);
    let down = Random(seed ^ 1).bytes(total);
    let up = Random(seed ^ 2).bytes(total);
    let (sent, expected) = (down.clone(), up.clone());
    let mut reader = host.try_clone().unwrap();
    reader.set_read_timeout(None).unwrap();
    let writer = thread::spawn(move || {
        let mut random = Random(seed ^ 3);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((1 + random.below(70_000) as usize).min(rest.len()));
            host.write_all(piece).unwrap();
            rest = more;
        }
        host.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == expected, "what the guest sent");
    });
    let (mut got, mut gone, mut known, mut closed) = (Vec::new(), 0, 0, false);
    while got.len() < total || gone < total || !closed {
        guest.fetch();
        while let Some((header, data)) = guest.packets.pop_front() {
            known = header.fwd_cnt;
            match header.op {
                op::RW => got.extend(data),
                op::CREDIT_REQUEST | op::CREDIT_UPDATE => {}
                op::SHUTDOWN => closed = true,
                _ => panic!("{header:?}"),
            }
        }
        peer.fwd_cnt = got.len() as u32;
        let room = WINDOW - (gone as u32).wrapping_sub(known);
        let len = (1 + random.below(65_536) as usize).min(room as usize).min(total - gone);
        if len > 0 {
            guest.send(&peer.data(&up[gone..gone + len]), &up[gone..gone + len]);
            gone += len;
        } else {
            guest.send(&peer.header(op::CREDIT_UPDATE), &[]);
            guest.driver.wait(Duration::from_millis(1));
        }
    }
    assert!(got == down, "what the host sent");
    guest.send(&peer.shutdown(NO_SEND), &[]);
    while !reader.is_finished() {
        guest.driver.wait(Duration::from_millis(1));
    }
    writer.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn every_byte_comes_in_order_whatever_the_sizes() {
    for (seed, room, buf_alloc, total) in
        [(10, 4096, 1 << 18, 3 << 20), (20, 100, 3000, 300_000), (30, 8000, 100_000, 3 << 20)]
    {
        within(Duration::from_secs(100), move || {
            let mut guest = Guest::without_buffers();
            guest.room = HEADER + room;
            (0..BUFFERS).for_each(|index| guest.post(index));
            let (client, peer) = guest.accept_client();
            exchange(guest, client, Peer { buf_alloc, ..peer }, seed, total);
        });
    }
}
