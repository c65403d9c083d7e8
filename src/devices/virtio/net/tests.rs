//! A small driver and a link of plain memory, and the device between them.

mod driver;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::Function;
use crate::memory::{Memory, Pages, allocate};
use crate::options;
use driver::{Driver, frame};
use vm_memory::GuestAddress;

const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const ALL_GUEST: u64 = MERGE
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO;

#[derive(Default)]
struct State {
    /// On their way to the guest, header first.
    incoming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    dropped: usize,
    full: bool,
    broken: bool,
    woken: usize,
    offloads: Offloads,
}

/// A link whose other side is the test.
#[derive(Clone)]
struct Wire {
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
}

impl Wire {
    fn new() -> Self {
        Wire { state: Arc::default(), event: Arc::new(EventFd::new(0).unwrap()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many frames still wait, and how many were lost.
    fn left(&self) -> (usize, usize) {
        let state = self.state();
        (state.incoming.len(), state.dropped)
    }

    fn check(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.broken { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(state) }
    }
}

impl Link for Wire {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn start(&mut self, offloads: Offloads) -> io::Result<()> {
        self.state().offloads = offloads;
        Ok(())
    }
    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn wake(&mut self) -> io::Result<()> {
        self.check()?.woken += 1;
        Ok(())
    }
    fn room(&mut self) -> io::Result<Option<usize>> {
        Ok(self.check()?.incoming.front().map(Vec::len))
    }
    fn receive(&mut self, buffers: &Buffers) -> io::Result<Received> {
        let mut state = self.check()?;
        let Some(frame) = state.incoming.pop_front() else { return Ok(Received::Nothing) };
        if buffers.write_at(0, &frame) < frame.len() {
            state.dropped += 1;
            return Ok(Received::Dropped);
        }
        Ok(Received::Frame(frame.len()))
    }
    fn send(&mut self, frame: &Buffers) -> io::Result<bool> {
        let mut state = self.check()?;
        if state.full {
            return Ok(false);
        }
        let mut bytes = vec![0; frame.len()];
        frame.read_at(0, &mut bytes);
        state.sent.push(bytes);
        Ok(true)
    }
}

fn memory() -> Arc<Memory> {
    Arc::new(allocate(&[(GuestAddress(0), 64 << 20)], Pages::Transparent).unwrap())
}

fn machine(features: u64) -> (Wire, Driver) {
    let wire = Wire::new();
    let mac = "02:00:00:00:00:07".parse().unwrap();
    let net = Net::new("eth0".into(), mac, Box::new(wire.clone()));
    let driver = Driver::new(Box::new(net), &memory(), features);
    (wire, driver)
}

#[test]
fn offers_what_its_link_can_do() {
    let (wire, driver) = machine(ALL_GUEST & !(1 << VIRTIO_NET_F_GUEST_TSO6));
    let offered = driver.function.offered();
    for feature in HOST.iter().chain(&GUEST) {
        assert_ne!(offered & 1 << feature, 0, "feature {feature}");
    }
    assert_eq!(wire.state().offloads, Offloads { tso6: false, ..Offloads::ALL });
    assert_eq!(driver.function.device().config(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5]);
}

#[test]
fn segments_without_checksums_are_not_asked_for() {
    let (wire, _driver) = machine(MERGE | 1 << VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(wire.state().offloads, Offloads::default());
}

#[test]
fn sends_a_frame_in_several_pieces() {
    let (wire, mut driver) = machine(0);
    let whole = frame(200, 1);
    driver.transmit(&[&whole[..5], &whole[5..12], &whole[12..13], &whole[13..]]);
    driver.kick(TRANSMIT);
    assert_eq!(wire.state().sent, [whole]);
    assert_eq!(driver.used(TRANSMIT).len(), 1);
    assert!(driver.interrupted());
}

#[test]
fn drops_what_is_no_frame() {
    let (wire, mut driver) = machine(0);
    let long = vec![0; MAX_FRAME + 1];
    for bad in [&[][..], &[0; HEADER], &[0; MIN_FRAME - 1], &long] {
        driver.transmit(&[bad]);
    }
    driver.kick(TRANSMIT);
    assert!(wire.state().sent.is_empty());
    assert_eq!(driver.used(TRANSMIT).len(), 4);
    assert_eq!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn waits_for_a_full_link() {
    let (wire, mut driver) = machine(0);
    wire.state().full = true;
    for i in 0..3 {
        driver.transmit(&[&frame(60, i)]);
    }
    driver.kick(TRANSMIT);
    assert!(driver.used(TRANSMIT).is_empty() && wire.state().sent.is_empty());
    wire.state().full = false;
    driver.function.ready();
    assert_eq!(wire.state().sent, [frame(60, 0), frame(60, 1), frame(60, 2)]);
    assert_eq!(driver.used(TRANSMIT).len(), 3);
    assert_eq!(wire.state().woken, 1);
}

#[test]
fn lets_others_have_their_turn() {
    let (wire, mut driver) = machine(0);
    for i in 0..100 {
        driver.transmit(&[&frame(60, i)]);
    }
    driver.kick(TRANSMIT);
    assert_eq!(wire.state().sent.len(), BATCH);
    assert_eq!(driver.pending_kicks(), [0, 1]);
    driver.kick(TRANSMIT);
    assert_eq!(wire.state().sent.len(), 100);
    assert_eq!(driver.pending_kicks(), [0, 0]);
    for i in 0..100 {
        driver.give(&[2048]);
        wire.state().incoming.push_back(frame(60, i));
    }
    driver.function.ready();
    assert_eq!(driver.used(RECEIVE).len(), BATCH);
    assert_eq!(driver.pending_kicks(), [1, 0]);
    driver.kick(RECEIVE);
    assert_eq!(driver.used(RECEIVE).len(), 100 - BATCH);
    assert_eq!(driver.pending_kicks(), [0, 0]);
}

#[test]
fn receives_into_one_chain_without_merging() {
    let (wire, mut driver) = machine(0);
    let [small, large] = [driver.give(&[10, 20, 30]), driver.give(&[2000])];
    wire.state().incoming.extend([frame(61, 1), frame(40, 2), frame(2000, 3)]);
    driver.function.ready();
    // The first does not fit, and its chain takes the next one.
    assert_eq!(driver.used(RECEIVE), [(small, 40), (large, 2000)]);
    assert_eq!(wire.state().dropped, 1);
    assert_eq!(driver.received(small, 40), numbered(frame(40, 2), 1));
    assert_eq!(driver.received(large, 2000), numbered(frame(2000, 3), 1));
}

/// The frame as it arrives in `count` buffers.
fn numbered(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn merges_many_small_chains() {
    let (wire, mut driver) = machine(ALL_GUEST);
    let heads: Vec<_> = (0..10).map(|_| driver.give(&[7, 9])).collect();
    // Nine chains and a byte; then what fits into none of the others.
    wire.state().incoming.extend([frame(129, 1), frame(40, 2)]);
    driver.function.ready();
    let used = driver.used(RECEIVE);
    let expected: Vec<_> =
        heads[..9].iter().map(|&head| (head, if head == heads[8] { 1 } else { 16 })).collect();
    assert_eq!(used, expected);
    let got: Vec<u8> = used.iter().flat_map(|&(head, len)| driver.received(head, len)).collect();
    assert_eq!(got, numbered(frame(129, 1), 9));
    assert_eq!(wire.state().dropped, 1);
    // The chain that was looked at and not used is still there.
    wire.state().incoming.push_back(frame(16, 3));
    driver.function.ready();
    assert_eq!(driver.used(RECEIVE), [(heads[9], 16)]);
}

#[test]
fn waits_for_a_driver_that_provides_well() {
    let (wire, mut driver) = machine(ALL_GUEST);
    for _ in 0..100 {
        driver.give(&[1536]);
    }
    driver.kick(RECEIVE);
    for _ in 0..4 {
        wire.state().incoming.push_back(frame(65_000, 9));
    }
    driver.function.ready();
    assert_eq!(driver.used(RECEIVE).len(), 2 * 43);
    assert_eq!(wire.left(), (2, 0));
    for _ in 0..80 {
        driver.give(&[1536]);
    }
    driver.kick(RECEIVE);
    assert_eq!(driver.used(RECEIVE).len(), 2 * 43);
    assert_eq!(wire.left(), (0, 0));
}

#[test]
fn survives_the_end_of_its_link() {
    let (wire, mut driver) = machine(MERGE);
    driver.give(&[2048]);
    driver.kick(RECEIVE);
    let generation = driver.function.generation();
    wire.state().broken = true;
    driver.function.ready();
    assert_eq!(driver.function.device().config()[6], 0, "the link is up");
    assert_ne!(driver.function.generation(), generation);
    assert!(driver.interrupted());
    driver.transmit(&[&frame(60, 0)]);
    driver.kick(TRANSMIT);
    driver.kick(RECEIVE);
    assert_eq!(driver.used(TRANSMIT).len(), 1);
    assert_eq!(wire.state().woken, 0);
    assert_eq!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn refuses_buffers_without_room_for_a_header() {
    let (wire, mut driver) = machine(MERGE);
    driver.give(&[HEADER as u32 - 1]);
    wire.state().incoming.push_back(frame(60, 0));
    driver.function.ready();
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    driver.function.reset();
    driver.start(MERGE);
    driver.give(&[2048]);
    driver.function.ready();
    assert_eq!(driver.used(RECEIVE).len(), 1);
}

#[test]
fn goes_on_after_a_restore() {
    let (wire, mut driver) = machine(ALL_GUEST);
    let heads = [driver.give(&[500]), driver.give(&[500]), driver.give(&[500])];
    driver.kick(RECEIVE);
    wire.state().incoming.push_back(frame(400, 0));
    driver.function.ready();
    // The device has taken all three chains, and gives back the two that it did not use.
    driver.function.freeze();
    let saved = driver.function.save();
    let mac = "02:00:00:00:00:01".parse().unwrap();
    let wire = Wire::new();
    let net = Net::new("eth0".into(), mac, Box::new(wire.clone()));
    driver.function = Function::new(Box::new(net), driver.memory()).unwrap();
    driver.function.load(&saved).unwrap();
    assert_eq!(driver.function.device().config()[..6], [2, 0, 0, 0, 0, 7]);
    assert_eq!(wire.state().offloads, Offloads::ALL);
    wire.state().incoming.push_back(frame(900, 1));
    driver.function.ready();
    assert_eq!(driver.used(RECEIVE), [(heads[0], 400), (heads[1], 500), (heads[2], 400)]);

    let mut hostile = saved.clone();
    for mac in ["ff:ff:ff:ff:ff:ff", "", "02:00:00:00:00:00:00"] {
        hostile.data["device"]["data"]["mac"] = mac.into();
        assert!(driver.function.load(&hostile).is_err(), "{mac}");
    }
    assert_eq!(driver.function.device().config()[..6], [2, 0, 0, 0, 0, 7]);
}

#[test]
fn goes_on_after_a_pause() {
    let (wire, mut driver) = machine(ALL_GUEST);
    for _ in 0..100 {
        driver.give(&[1536]);
    }
    driver.kick(RECEIVE);
    driver.function.freeze();
    wire.state().incoming.extend([frame(60_000, 1), frame(60_000, 2)]);
    driver.function.ready();
    assert!(driver.used(RECEIVE).is_empty());
    driver.function.thaw();
    assert_eq!(driver.used(RECEIVE).len(), 2 * 40);
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
