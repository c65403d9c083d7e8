//! The device between a driver and a link whose other side is the test.

mod tap;
mod user;
mod wire;

use std::sync::{Arc, Mutex};

use wire::{Wire, machine, net};

use super::*;
use crate::devices::virtio::Function;
use crate::devices::virtio::mock::{Driver, hostile};
use crate::options;
use crate::snapshot::Persist;

const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const ALL_GUEST: u64 = MERGE
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO;

/// A frame of `len` bytes, its header included: zeroes, then bytes that depend on `seed`.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| if i < HEADER { 0 } else { (i as u8).wrapping_mul(31).wrapping_add(seed) }).collect()
}

#[test]
fn offers_what_its_link_can_do() {
    let (wire, guest) = machine(ALL_GUEST & !(1 << VIRTIO_NET_F_GUEST_TSO6));
    let offered = guest.driver.offered();
    for feature in HOST.iter().chain(&GUEST) {
        assert_ne!(offered & 1 << feature, 0, "feature {feature}");
    }
    assert_eq!(wire.state().offloads, Offloads { tso6: false, ..Offloads::ALL });
    assert_eq!(guest.config(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5]);
}

#[test]
fn segments_without_checksums_are_not_asked_for() {
    let (wire, _guest) = machine(MERGE | 1 << VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(wire.state().offloads, Offloads::default());
}

#[test]
fn sends_a_frame_in_several_pieces() {
    let (wire, mut guest) = machine(0);
    let whole = frame(200, 1);
    guest.transmit(&[&whole[..5], &whole[5..12], &whole[12..13], &whole[13..]]);
    guest.kick(TRANSMIT);
    assert_eq!(wire.state().sent, [whole]);
    assert_eq!(guest.used(TRANSMIT).len(), 1);
    assert!(guest.driver.interrupted());
}

#[test]
fn drops_what_is_no_frame() {
    let (wire, mut guest) = machine(0);
    let long = vec![0; MAX_FRAME + 1];
    for bad in [&[][..], &[0; HEADER], &[0; MIN_FRAME - 1], &long] {
        guest.transmit(&[bad]);
    }
    guest.kick(TRANSMIT);
    assert!(wire.state().sent.is_empty());
    assert_eq!(guest.used(TRANSMIT).len(), 4);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn waits_for_a_full_link() {
    let (wire, mut guest) = machine(0);
    wire.state().full = true;
    for i in 0..3 {
        guest.transmit(&[&frame(60, i)]);
    }
    guest.kick(TRANSMIT);
    assert!(guest.used(TRANSMIT).is_empty() && wire.state().sent.is_empty());
    wire.state().full = false;
    guest.ready();
    assert_eq!(wire.state().sent, [frame(60, 0), frame(60, 1), frame(60, 2)]);
    assert_eq!(guest.used(TRANSMIT).len(), 3);
    assert_eq!(wire.state().woken, 1);
}

#[test]
fn lets_others_have_their_turn() {
    let (wire, mut guest) = machine(0);
    for i in 0..100 {
        guest.transmit(&[&frame(60, i)]);
    }
    guest.kick(TRANSMIT);
    assert_eq!(wire.state().sent.len(), BATCH);
    assert_eq!(guest.kicked_again(), [false, true]);
    guest.kick(TRANSMIT);
    assert_eq!(wire.state().sent.len(), 100);
    assert_eq!(guest.kicked_again(), [false, false]);
    for i in 0..100 {
        guest.give(&[2048]);
        wire.state().incoming.push_back(frame(60, i));
    }
    guest.ready();
    assert_eq!(guest.used(RECEIVE).len(), BATCH);
    assert_eq!(guest.kicked_again(), [true, false]);
    guest.kick(RECEIVE);
    assert_eq!(guest.used(RECEIVE).len(), 100 - BATCH);
    assert_eq!(guest.kicked_again(), [false, false]);
}

#[test]
fn receives_into_one_chain_without_merging() {
    let (wire, mut guest) = machine(0);
    let [small, large] = [guest.give(&[10, 20, 30]), guest.give(&[2000])];
    wire.state().incoming.extend([frame(61, 1), frame(40, 2), frame(2000, 3)]);
    guest.ready();
    // The first does not fit, and its chain takes the next one.
    assert_eq!(guest.used(RECEIVE), [(small, 40), (large, 2000)]);
    assert_eq!(wire.state().dropped, 1);
    assert_eq!(guest.received(small, 40), numbered(frame(40, 2), 1));
    assert_eq!(guest.received(large, 2000), numbered(frame(2000, 3), 1));
}

/// The frame as it arrives in `count` buffers.
fn numbered(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn merges_many_small_chains() {
    let (wire, mut guest) = machine(ALL_GUEST);
    let heads: Vec<_> = (0..10).map(|_| guest.give(&[7, 9])).collect();
    // Nine chains and a byte; then what fits into none of the others.
    wire.state().incoming.extend([frame(129, 1), frame(40, 2)]);
    guest.ready();
    let used = guest.used(RECEIVE);
    let expected: Vec<_> =
        heads[..9].iter().map(|&head| (head, if head == heads[8] { 1 } else { 16 })).collect();
    assert_eq!(used, expected);
    let got: Vec<u8> = used.iter().flat_map(|&(head, len)| guest.received(head, len)).collect();
    assert_eq!(got, numbered(frame(129, 1), 9));
    assert_eq!(wire.state().dropped, 1);
    // The chain that was looked at and not used is still there.
    wire.state().incoming.push_back(frame(16, 3));
    guest.ready();
    assert_eq!(guest.used(RECEIVE), [(heads[9], 16)]);
}

#[test]
fn waits_for_a_driver_that_provides_well() {
    let (wire, mut guest) = machine(ALL_GUEST);
    for _ in 0..100 {
        guest.give(&[1536]);
    }
    guest.kick(RECEIVE);
    for _ in 0..4 {
        wire.state().incoming.push_back(frame(65_000, 9));
    }
    guest.ready();
    assert_eq!(guest.used(RECEIVE).len(), 2 * 43);
    assert_eq!(wire.left(), (2, 0));
    for _ in 0..80 {
        guest.give(&[1536]);
    }
    guest.kick(RECEIVE);
    assert_eq!(guest.used(RECEIVE).len(), 2 * 43);
    assert_eq!(wire.left(), (0, 0));
}

#[test]
fn survives_the_end_of_its_link() {
    let (wire, mut guest) = machine(MERGE);
    guest.give(&[2048]);
    guest.kick(RECEIVE);
    let generation = guest.function().generation();
    wire.state().broken = true;
    guest.ready();
    assert_eq!(guest.config()[6], 0, "the link is up");
    assert_ne!(guest.function().generation(), generation);
    assert!(guest.driver.interrupted());
    guest.transmit(&[&frame(60, 0)]);
    guest.kick(TRANSMIT);
    guest.kick(RECEIVE);
    assert_eq!(guest.used(TRANSMIT).len(), 1);
    assert_eq!(wire.state().woken, 0);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn refuses_buffers_without_room_for_a_header() {
    let (wire, mut guest) = machine(MERGE);
    guest.give(&[HEADER - 1]);
    wire.state().incoming.push_back(frame(60, 0));
    guest.ready();
    assert!(guest.driver.needs_reset());
    guest.driver.start(1 << 32 | MERGE);
    guest.give(&[2048]);
    guest.ready();
    assert_eq!(guest.used(RECEIVE).len(), 1);
}

#[test]
fn goes_on_after_a_restore() {
    let (wire, mut guest) = machine(ALL_GUEST);
    let heads = [guest.give(&[500]), guest.give(&[500]), guest.give(&[500])];
    guest.kick(RECEIVE);
    wire.state().incoming.push_back(frame(400, 0));
    guest.ready();
    // The device has taken all three chains, and gives back the two that it did not use.
    guest.function().freeze();
    let saved = guest.function().save();
    let wire = Wire::new();
    let mut restored = Function::new(net(&wire, "02:00:00:00:00:01"), &guest.driver.memory).unwrap();
    restored.load(&saved).unwrap();
    guest.driver.function = Arc::new(Mutex::new(restored));
    assert_eq!(guest.config()[..6], [2, 0, 0, 0, 0, 7]);
    assert_eq!(wire.state().offloads, Offloads::ALL);
    wire.state().incoming.push_back(frame(900, 1));
    guest.ready();
    assert_eq!(guest.used(RECEIVE), [(heads[0], 400), (heads[1], 500), (heads[2], 400)]);

    let mut hostile = saved.clone();
    for mac in ["ff:ff:ff:ff:ff:ff", "", "02:00:00:00:00:00:00"] {
        hostile.data["device"]["data"]["mac"] = mac.into();
        assert!(guest.function().load(&hostile).is_err(), "{mac}");
    }
    assert_eq!(guest.config()[..6], [2, 0, 0, 0, 0, 7]);
}

#[test]
fn goes_on_after_a_pause() {
    let (wire, mut guest) = machine(ALL_GUEST);
    for _ in 0..100 {
        guest.give(&[1536]);
    }
    guest.kick(RECEIVE);
    guest.function().freeze();
    wire.state().incoming.extend([frame(60_000, 1), frame(60_000, 2)]);
    guest.ready();
    assert!(guest.used(RECEIVE).is_empty());
    guest.function().thaw();
    assert_eq!(guest.used(RECEIVE).len(), 2 * 40);
}

#[test]
fn survives_a_hostile_driver() {
    let wire = Wire::new();
    wire.state().busy = true;
    let other = wire.clone();
    let works = move |driver: &mut Driver| {
        let reply = driver.request(RECEIVE, &[], 2000);
        assert_eq!((reply.len, &reply.bytes[..100]), (100, &numbered(frame(100, 7), 1)[..]));
        other.state().sent.clear();
        driver.request(TRANSMIT, &[&frame(60, 1)], 0);
        assert_eq!(other.state().sent, [frame(60, 1)]);
    };
    hostile::suite(move || net(&wire, "02:00:00:00:00:07"), works);
}

#[test]
fn reads_its_options() {
    let parse = |text: &str| text.parse::<Config>();
    assert_eq!(parse("user").unwrap(), Config::user());
    assert!(parse("none").unwrap().is_none());
    let tap = parse("tap=tap0,mac=02:00:00:00:00:01,id=wan").unwrap();
    assert_eq!((tap.host_dev_name.as_deref(), tap.iface_id.as_str()), (Some("tap0"), "wan"));
    assert_eq!(tap.guest_mac.unwrap().0, [2, 0, 0, 0, 0, 1]);
    let user = parse("user,publish=8080:80,map-gw,publish=127.0.0.1:53:53/udp").unwrap().user.unwrap();
    assert_eq!((user.publish.len(), user.map_gw), (2, true));
    for (bad, message) in [
        ("", "Option `net` cannot be ``: it takes user, tap=NAME or none"),
        ("tap", "Option `net` cannot be `tap`: it takes user, tap=NAME or none"),
        ("tap=", "Option `net` cannot be `tap=`: it takes user, tap=NAME or none"),
        ("tap=t,publish=1:2", "Unknown option `publish`, did you mean `id`? Known are: mac, id"),
        (
            "user,publsh=1:2",
            "Unknown option `publsh`, did you mean `publish`? Known are: publish, map-gw, mac, id",
        ),
        (
            "user,publish=80",
            "Option `publish` cannot be `80`: it takes [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]",
        ),
        ("user,mac", "Option `mac` takes the address of one interface, like 02:00:00:00:00:01"),
        (
            "user,mac=ff:ff:ff:ff:ff:ff",
            "Option `mac` cannot be `ff:ff:ff:ff:ff:ff`: it takes the address of one interface, like 02:00:00:00:00:01",
        ),
    ] {
        let error: options::Error = parse(bad).unwrap_err();
        assert_eq!(error.to_string(), message, "{bad}");
    }
}

#[test]
fn reads_firecrackers_json() {
    let text = r#"{"iface_id": "eth0", "guest_mac": "AA:FC:00:00:00:01", "host_dev_name": "tap0"}"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!(config, Config { iface_id: "eth0".into(), .."tap=tap0,mac=aa:fc:00:00:00:01".parse().unwrap() });
    let user: Config = serde_json::from_str(r#"{"user": {"publish": ["[::1]:8080:80"]}}"#).unwrap();
    assert_eq!(user, "user,publish=[::1]:8080:80".parse().unwrap());
    let back = serde_json::to_string(&user).unwrap();
    assert_eq!(back, r#"{"iface_id":"","user":{"publish":["[::1]:8080:80"]}}"#);
}
