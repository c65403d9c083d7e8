//! One stream between a port of the guest and a unix socket of the host, with credit in both directions
//! (virtio 1.2, 5.10.6.3 to 5.10.6.6).
//!
//! ```text
//!  client on the host                                                         service on the host
//!     wanted ── REQUEST ──► asked ── RESPONSE ──► open ◄── RESPONSE ── accepted ◄── REQUEST
//!                                                  │
//!   host's end closed, all read ── SHUTDOWN ──►    │   ◄── SHUTDOWN ── guest's end closed: what is kept for the
//!   both directions: forgotten                     ▼                   host goes out first, then the socket closes
//!                                                 end
//! ```
//!
//! What the guest sends goes straight to the socket. What the socket does not take is kept here, never more than
//! [`WINDOW`](super::credit::WINDOW): the guest has no credit for more. What the host sends is read when the guest has both buffers and
//! credit for it.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::RECEIVE;
use super::burst::{self, Burst};
use super::credit::{Credit, Window};
use super::packet::{HEADER, HOST_CID, Header, NO_RECEIVE, NO_SEND, Ports, STREAM, op};
use crate::devices::virtio::{Chain, Lent, Violation};
use crate::memory::Buffers;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A client on the host wants it; the guest does not know yet.
    Wanted,
    /// The guest was asked.
    Asked,
    /// The guest wants it, there is a service, and the guest does not know yet.
    Accepted,
    /// Bytes flow.
    Open,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It is over, and the guest is told.
    Reset,
    /// The guest has closed it properly and is told so; what is kept for the host still goes out.
    Finish,
    /// It is over.
    Forget,
}

/// What came of a turn to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A packet went, or there was nothing.
    Done,
    /// The guest has no buffer.
    Starved,
    /// The connection is over.
    Over(Verdict),
}

/// A connection.
pub struct Connection {
    ports: Ports,
    guest_cid: u64,
    socket: UnixStream,
    stage: Stage,
    /// The guest has closed it; only what is kept for the host holds it here.
    finished: bool,
    /// The connection waits for its turn to send.
    pub queued: bool,

    // Host to guest.
    /// The socket may have bytes.
    readable: bool,
    credit: Credit,
    burst: burst::Length,

    // Guest to host.
    window: Window,
    /// What the socket did not take.
    kept: Vec<u8>,

    /// Directions that are over, each seen from its sender: what the guest said, what it is to be told, what it was told.
    guest_closed: u32,
    host_closed: u32,
    said_closed: u32,
}

impl Connection {
    fn new(ports: Ports, guest_cid: u64, socket: UnixStream, stage: Stage) -> Self {
        Connection {
            ports,
            guest_cid,
            socket,
            stage,
            finished: false,
            queued: false,
            readable: true,
            credit: Credit::default(),
            burst: burst::Length::default(),
            window: Window::default(),
            kept: Vec::new(),
            guest_closed: 0,
            host_closed: 0,
            said_closed: 0,
        }
    }

    /// A client on the host, with a socket that does not block, wants to reach the guest.
    pub fn to_guest(ports: Ports, guest_cid: u64, socket: UnixStream) -> Self {
        Connection::new(ports, guest_cid, socket, Stage::Wanted)
    }

    /// The guest has reached a service on the host by a socket that does not block.
    pub fn from_guest(request: &Header, socket: UnixStream) -> Self {
        let mut connection = Connection::new(request.ports(), request.src_cid, socket, Stage::Accepted);
        // Whatever it has to say is an event of its own.
        connection.readable = false;
        connection.credit.learn(request);
        connection
    }

    /// Its ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether bytes wait for the socket to take them.
    pub fn is_blocked(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether only what is kept for the host holds it here.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The guest is done with it.
    pub fn finish(&mut self) -> Verdict {
        self.finished = true;
        if self.kept.is_empty() { Verdict::Forget } else { Verdict::Keep }
    }

    /// Whether there is something to send to the guest.
    pub fn wants_turn(&self) -> bool {
        !self.finished
            && match self.stage {
                Stage::Wanted | Stage::Accepted => true,
                Stage::Asked => false,
                Stage::Open => self.window.is_to_tell() || self.host_closed != self.said_closed || self.has_data(),
            }
    }

    fn has_data(&self) -> bool {
        self.readable
            && self.host_closed & NO_SEND == 0
            && self.guest_closed & NO_RECEIVE == 0
            && (self.credit.left() > 0 || !self.credit.was_asked())
    }

    /// The socket has changed.
    pub fn event(&mut self, events: EventSet) -> Verdict {
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            match self.stage {
                // Nobody knows of it yet.
                Stage::Wanted => return Verdict::Forget,
                Stage::Asked => return Verdict::Reset,
                Stage::Accepted | Stage::Open => self.host_is_deaf(),
            }
        }
        if self.finished && self.kept.is_empty() { Verdict::Forget } else { Verdict::Keep }
    }

    /// The guest has sent a packet, with `data` behind its header.
    pub fn packet(&mut self, header: &Header, data: &Buffers) -> Verdict {
        self.credit.learn(header);
        match (header.op, self.stage) {
            (op::RESPONSE, Stage::Asked) => self.answer(),
            (op::RW, Stage::Open | Stage::Accepted) => self.deliver(data),
            (op::CREDIT_UPDATE, _) => Verdict::Keep,
            (op::CREDIT_REQUEST, _) => {
                self.window.ask();
                Verdict::Keep
            }
            (op::SHUTDOWN, Stage::Open | Stage::Accepted) => self.guest_closes(header.flags),
            // After a shutdown that is how the guest lets go.
            (op::RST, _) if self.guest_closed & NO_SEND != 0 => self.finish(),
            (op::RST, _) => Verdict::Forget,
            _ => Verdict::Reset,
        }
    }

    /// The guest has accepted: the client learns its port, and bytes flow.
    fn answer(&mut self) -> Verdict {
        let line = format!("OK {}\n", self.ports.host);
        // A fresh socket has room for a line.
        match self.socket.write(line.as_bytes()) {
            Ok(written) if written == line.len() => {
                self.stage = Stage::Open;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    fn guest_closes(&mut self, flags: u32) -> Verdict {
        self.guest_closed |= flags & (NO_SEND | NO_RECEIVE);
        if self.guest_closed == NO_SEND | NO_RECEIVE {
            return Verdict::Finish;
        }
        if self.guest_closed & NO_RECEIVE != 0 {
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.pass_end_on();
        Verdict::Keep
    }

    /// Tells the host that the guest sends no more, when all that it sent has gone out.
    fn pass_end_on(&self) {
        if self.guest_closed & NO_SEND != 0 && self.kept.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Nobody reads on the host any more.
    fn host_is_deaf(&mut self) {
        self.host_closed |= NO_RECEIVE;
        self.window.forward_all();
        self.kept = Vec::new();
    }

    fn deliver(&mut self, data: &Buffers) -> Verdict {
        if data.len() > self.window.left() as usize || self.guest_closed & NO_SEND != 0 {
            return Verdict::Reset;
        }
        self.window.receive(data.len());
        if self.host_closed & NO_RECEIVE != 0 {
            self.window.forward_all();
            return Verdict::Keep;
        }
        let gone = match self.kept.is_empty() {
            true => self.write(|socket| data.send(socket.as_fd(), &[], 0)),
            false => Some(0),
        };
        if let Some(gone) = gone {
            let kept = self.kept.len();
            self.kept.resize(kept + data.len() - gone, 0);
            data.read_at(gone, &mut self.kept[kept..]);
        }
        Verdict::Keep
    }

    /// Writes what is kept, as much as the socket takes.
    fn flush(&mut self) {
        while !self.kept.is_empty() {
            let kept = std::mem::take(&mut self.kept);
            let gone = self.write(|mut socket| socket.write(&kept));
            let Some(gone) = gone else { return };
            self.kept = kept;
            self.kept.drain(..gone);
            if gone == 0 {
                return;
            }
        }
        self.kept = Vec::new();
        self.pass_end_on();
    }

    /// Writes once and counts it; `None` if nobody reads on the host any more.
    fn write(&mut self, mut write: impl FnMut(&UnixStream) -> io::Result<usize>) -> Option<usize> {
        let gone = loop {
            match write(&self.socket) {
                Ok(gone) => break gone,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(_) => {
                    self.host_is_deaf();
                    return None;
                }
            }
        };
        self.window.forward(gone);
        Some(gone)
    }

    /// It is the connection's turn to send a packet, or a burst of them.
    pub fn turn(&mut self, lent: &mut Lent) -> Result<Turn, Violation> {
        let closed = self.host_closed;
        let (op, flags) = match self.stage {
            Stage::Wanted => (op::REQUEST, 0),
            Stage::Accepted => (op::RESPONSE, 0),
            Stage::Asked => return Ok(Turn::Done),
            Stage::Open if closed != self.said_closed => (op::SHUTDOWN, closed),
            Stage::Open if self.has_data() && self.credit.left() > 0 => return self.read(lent),
            Stage::Open if self.has_data() => (op::CREDIT_REQUEST, 0),
            Stage::Open if self.window.is_to_tell() => (op::CREDIT_UPDATE, 0),
            Stage::Open => return Ok(Turn::Done),
        };
        let Some(chain) = burst::take(lent)? else { return Ok(Turn::Starved) };
        self.give(chain, op, flags, 0, lent)?;
        match op {
            op::REQUEST => self.stage = Stage::Asked,
            op::RESPONSE => self.stage = Stage::Open,
            op::SHUTDOWN => self.said_closed = closed,
            op::CREDIT_REQUEST => self.credit.ask(),
            _ => {}
        }
        // Whatever the guest still says is answered with a reset.
        let over = self.said_closed == NO_SEND | NO_RECEIVE;
        Ok(if over { Turn::Over(Verdict::Forget) } else { Turn::Done })
    }

    /// Passes bytes of the host on.
    fn read(&mut self, lent: &mut Lent) -> Result<Turn, Violation> {
        let Some(burst) = Burst::take(&self.burst, self.credit.left() as usize, lent)? else {
            return Ok(Turn::Starved);
        };
        let mut turn = Turn::Done;
        let got = match burst.read(&self.socket, &mut self.burst) {
            Ok(0) => {
                self.host_closed |= NO_SEND;
                0
            }
            Ok(got) => got,
            Err(error) => {
                match error.kind() {
                    ErrorKind::WouldBlock => self.readable = false,
                    _ => turn = Turn::Over(Verdict::Reset),
                }
                0
            }
        };
        self.credit.spend(got);
        burst.send(got, lent, |chain, len, lent| self.give(chain, op::RW, 0, len, lent))?;
        Ok(turn)
    }

    /// Gives a packet to the guest, whose data is already behind the header.
    fn give(
        &mut self,
        chain: Chain,
        op: u16,
        flags: u32,
        len: usize,
        lent: &mut Lent,
    ) -> Result<(), Violation> {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: STREAM,
            op,
            flags,
            ..Header::default()
        };
        self.window.tell(&mut header);
        chain.writable.write_at(0, &header.encode());
        lent.give(RECEIVE, chain.head, (HEADER + len) as u32)
    }

    /// The reset that tells the guest of the end.
    pub fn reset(&self) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: STREAM,
            op: op::RST,
            ..Header::default()
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
