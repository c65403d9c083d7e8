//! All connections of one guest, and what wakes them: one epoll descriptor holds the listener and every socket
//! (`epoll(7)`), so that whoever watches the device watches one descriptor.
//!
//! ```text
//!   listener ──► greeting: which port? ──► connection ◄── REQUEST of the guest, socket <path>_<port>
//!                                              │ something to send
//!                                              ▼
//!                      replies (resets) ──► turns, one after the other ──► receive queue of the guest
//! ```
//!
//! What one guest or its clients can hold here is bounded: connections, clients that have not said what they want,
//! bytes per connection ([`WINDOW`](super::credit::WINDOW)), resets that the guest does not fetch.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use log::{debug, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::burst;
use super::connection::{Connection, Turn, Verdict};
use super::greeting::{Greeting, Progress};
use super::listener::Listener;
use super::packet::{HEADER, HOST_CID, Header, Ports, STREAM, op};
use super::{BATCH, RECEIVE};
use crate::devices::virtio::{Lent, Violation};
use crate::memory::Buffers;
use crate::sys::{random, socket};

/// Connections and clients together. Each has a descriptor, of which a process has 1024 by default.
pub const MAX_CONNECTIONS: usize = 512;

/// Clients that have not said what they want; the oldest one goes when another comes.
pub const MAX_GREETINGS: usize = 64;

/// Resets that wait for the guest to fetch them, before nothing more is taken from it.
pub const MAX_REPLIES: usize = 256;

/// Ports for clients of the host: none that a service would have.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// What the listener is called in epoll. Connections are numbered from 1.
const LISTENER: u64 = 0;

/// What is watched besides what a socket is ready for.
const WATCHED: EventSet = EventSet::from_bits_truncate(
    EventSet::IN.bits() | EventSet::READ_HANG_UP.bits() | EventSet::EDGE_TRIGGERED.bits(),
);

enum Slot {
    Greeting(Greeting),
    Open { connection: Box<Connection>, watched_for_room: bool },
}

/// All connections.
pub struct Exchange {
    epoll: Epoll,
    listener: Listener,
    guest_cid: u64,
    slots: HashMap<u64, Slot>,
    by_ports: HashMap<Ports, u64>,
    /// Clients in the order in which they came.
    greetings: VecDeque<u64>,
    /// Connections with something to send.
    turns: VecDeque<u64>,
    replies: VecDeque<Header>,
    /// Clients may wait at the listener.
    waiting: bool,
    /// The host had no room for the last client.
    refused: bool,
    last_number: u64,
    next_port: u32,
}

impl Exchange {
    /// An exchange for the guest with this address.
    pub fn new(listener: Listener, guest_cid: u64) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(WATCHED, LISTENER))?;
        // A restored guest may still speak of connections that its former device had: they must not be taken for ours.
        let mut random = [0; 4];
        random::fill(&mut random)?;
        Ok(Exchange {
            epoll,
            listener,
            guest_cid,
            slots: HashMap::new(),
            by_ports: HashMap::new(),
            greetings: VecDeque::new(),
            turns: VecDeque::new(),
            replies: VecDeque::new(),
            waiting: true,
            refused: false,
            last_number: LISTENER,
            next_port: FIRST_PORT + u32::from_ne_bytes(random) % (LAST_PORT - FIRST_PORT),
        })
    }

    /// Ends all connections.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.by_ports.clear();
        self.greetings.clear();
        self.turns.clear();
        self.replies.clear();
        self.waiting = true;
    }

    /// Whether the guest has so much to fetch that nothing more is taken from it.
    pub fn is_full(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Looks what has happened on the host.
    pub fn poll(&mut self) {
        let mut events = [EpollEvent::default(); 64];
        loop {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.waiting = true,
                    number => self.event(number, event.event_set()),
                }
            }
            if count < events.len() {
                break;
            }
        }
        self.accept();
    }

    fn event(&mut self, number: u64, events: EventSet) {
        match self.slots.get_mut(&number) {
            Some(Slot::Greeting(_)) => self.greet(number),
            Some(Slot::Open { connection, .. }) => {
                let verdict = connection.event(events);
                self.carry_out(number, verdict);
            }
            None => {}
        }
    }

    fn accept(&mut self) {
        while self.waiting && self.slots.len() < MAX_CONNECTIONS && !self.is_full() {
            match self.listener.accept() {
                Ok(Some(client)) => {
                    self.refused = false;
                    if self.greetings.len() >= MAX_GREETINGS
                        && let Some(oldest) = self.greetings.pop_front()
                    {
                        self.slots.remove(&oldest);
                    }
                    if let Some(number) = self.insert(client.as_raw_fd(), Slot::Greeting(Greeting::new(client))) {
                        self.greetings.push_back(number);
                        self.greet(number);
                    }
                }
                Ok(None) => self.waiting = false,
                Err(error) => {
                    if !self.refused {
                        warn!("Cannot accept connections at {}: {error}", self.listener.path().display());
                    }
                    self.refused = true;
                    return;
                }
            }
        }
    }

    fn insert(&mut self, fd: RawFd, slot: Slot) -> Option<u64> {
        let number = self.last_number + 1;
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(WATCHED, number)) {
            warn!("Cannot watch a connection: {error}");
            return None;
        }
        self.last_number = number;
        self.slots.insert(number, slot);
        Some(number)
    }

    /// Reads what a client wants.
    fn greet(&mut self, number: u64) {
        let Some(Slot::Greeting(greeting)) = self.slots.get_mut(&number) else { return };
        let progress = greeting.read();
        if progress == Progress::Waiting {
            return;
        }
        self.greetings.retain(|&other| other != number);
        if let (Progress::Port(guest), Some(Slot::Greeting(greeting))) = (progress, self.slots.remove(&number)) {
            let ports = Ports { host: self.free_port(guest), guest };
            let connection = Connection::to_guest(ports, self.guest_cid, greeting.into_socket());
            self.open(number, connection);
        }
    }

    /// A connection takes the number of its client, whose socket is watched already.
    fn open(&mut self, number: u64, connection: Connection) {
        self.by_ports.insert(connection.ports(), number);
        let connection = Box::new(connection);
        self.slots.insert(number, Slot::Open { connection, watched_for_room: false });
        self.carry_out(number, Verdict::Keep);
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host + 1 };
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// The guest has sent a packet.
    pub fn packet(&mut self, packet: &Buffers) {
        let Some(header) = Header::read(packet) else { return };
        // A packet in another guest's name leads nowhere, not even to an answer.
        if header.src_cid != self.guest_cid {
            return;
        }
        let data = packet.part(HEADER, header.len as usize);
        let is_valid =
            header.kind == STREAM && header.dst_cid == HOST_CID && data.len() == header.len as usize;
        let number = self.by_ports.get(&header.ports()).copied().filter(|_| header.dst_cid == HOST_CID);
        match (number, header.op) {
            (Some(number), _) => {
                let verdict = match self.slots.get_mut(&number) {
                    Some(Slot::Open { connection, .. }) if is_valid => connection.packet(&header, &data),
                    _ => Verdict::Reset,
                };
                self.carry_out(number, verdict);
            }
            (None, op::RST) => {}
            (None, op::REQUEST) if is_valid && self.slots.len() < MAX_CONNECTIONS => self.call(&header),
            (None, _) => self.replies.push_back(header.reset()),
        }
    }

    /// The guest wants to reach a service on the host.
    fn call(&mut self, request: &Header) {
        let mut path = self.listener.path().as_os_str().to_os_string();
        path.push(format!("_{}", request.dst_port));
        let path = PathBuf::from(path);
        let service = socket::connect(&path).and_then(|service| {
            service.set_nonblocking(true)?;
            Ok(service)
        });
        match service {
            Ok(service) => {
                let fd = service.as_raw_fd();
                let connection = Box::new(Connection::from_guest(request, service));
                let slot = Slot::Open { connection, watched_for_room: false };
                match self.insert(fd, slot) {
                    Some(number) => {
                        self.by_ports.insert(request.ports(), number);
                        self.carry_out(number, Verdict::Keep);
                    }
                    None => self.replies.push_back(request.reset()),
                }
            }
            Err(error) => {
                debug!("The guest cannot reach {}: {error}", path.display());
                self.replies.push_back(request.reset());
            }
        }
    }

    /// Does what is to become of a connection, and puts it in line if it has something to send.
    fn carry_out(&mut self, number: u64, verdict: Verdict) {
        let Some(Slot::Open { connection, watched_for_room }) = self.slots.get_mut(&number) else { return };
        let over = match verdict {
            Verdict::Keep => false,
            Verdict::Forget => true,
            Verdict::Reset => {
                self.replies.push_back(connection.reset());
                true
            }
            Verdict::Finish => {
                self.replies.push_back(connection.reset());
                connection.finish() == Verdict::Forget
            }
        };
        if (over || connection.is_finished()) && self.by_ports.get(&connection.ports()) == Some(&number) {
            self.by_ports.remove(&connection.ports());
        }
        if over {
            if connection.queued {
                self.turns.retain(|&other| other != number);
            }
            self.slots.remove(&number);
            return;
        }
        if connection.is_blocked() != *watched_for_room {
            *watched_for_room = connection.is_blocked();
            let room = if *watched_for_room { EventSet::OUT } else { EventSet::empty() };
            let event = EpollEvent::new(WATCHED | room, number);
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, connection.as_raw_fd(), event) {
                warn!("Cannot watch a connection: {error}");
            }
        }
        if connection.wants_turn() && !connection.queued {
            connection.queued = true;
            self.turns.push_back(number);
        }
    }

    /// Sends to the guest, one connection after the other, until it has no buffers, there is nothing to send, or a
    /// batch is done.
    pub fn send(&mut self, lent: &mut Lent) -> Result<(), Violation> {
        for _ in 0..BATCH {
            if let Some(reply) = self.replies.front() {
                let Some(chain) = burst::take(lent)? else { return Ok(()) };
                chain.writable.write_at(0, &reply.encode());
                lent.give(RECEIVE, chain.head, HEADER as u32)?;
                self.replies.pop_front();
                continue;
            }
            let Some(&number) = self.turns.front() else { return Ok(()) };
            let Some(Slot::Open { connection, .. }) = self.slots.get_mut(&number) else {
                self.turns.pop_front();
                continue;
            };
            match connection.turn(lent)? {
                Turn::Starved => return Ok(()),
                turn => {
                    self.turns.pop_front();
                    connection.queued = false;
                    let verdict = if let Turn::Over(verdict) = turn { verdict } else { Verdict::Keep };
                    self.carry_out(number, verdict);
                }
            }
        }
        lent.again(RECEIVE);
        Ok(())
    }
}

impl AsRawFd for Exchange {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
