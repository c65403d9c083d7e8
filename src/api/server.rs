//! The server: one thread that waits for all clients of a machine's socket at once (epoll(7)).
//!
//! ```text
//!   socket ──► connection ──► request ──► a thread for this request: service, monitor ─┐
//!     ▲                                                                                │ answer, eventfd
//!     └────────── output ◄──── respond ◄───────────────────────────────────────────────┘
//! ```
//!
//! A client that is slow, silent or hostile costs a place and some memory for a limited time, and a request that
//! takes long (a snapshot) keeps nobody else waiting.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Service;
use super::connection::Connection;
use super::http::Response;

use crate::sys::event::event;

/// Clients at the same time. For one more, the one that has been silent for the longest time is let go.
const MAX_CLIENTS: usize = 32;
/// How long a client may take over sending one request, or over reading the answer.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a client may stay without a request.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a client whose request was refused may go on sending it. Closed at once, the socket would take the answer with it.
const PARTING_TIME: Duration = Duration::from_secs(2);
/// How long answers are waited for when the server ends.
const ENDING_TIME: Duration = Duration::from_secs(1);

const STOP: u64 = 0;
const LISTENER: u64 = 1;
const ANSWER: u64 = 2;
const FIRST_CLIENT: u64 = 3;

/// A server that runs. It ends when this value is dropped; requests that the monitor has taken are answered before.
pub struct Server {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts answering the clients of `listener`.
    ///
    /// # Errors
    /// When the host gives no more descriptors or threads.
    pub fn start(listener: UnixListener, service: Service) -> io::Result<Self> {
        let (stop, answered) = (Arc::new(event()?), Arc::new(event()?));
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(stop.as_raw_fd(), STOP)?;
        watch(listener.as_raw_fd(), LISTENER)?;
        watch(answered.as_raw_fd(), ANSWER)?;
        let (sender, answers) = mpsc::channel();
        let mut clients = Clients {
            epoll,
            listener,
            service: Arc::new(service),
            clients: BTreeMap::new(),
            next: FIRST_CLIENT,
            sender,
            answers,
            answered,
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new().name("api".into()).spawn(move || clients.serve())?;
        Ok(Server { stop, thread: Some(thread) })
    }

    /// Begins to end: nobody is accepted any more. Dropping the value waits for the end.
    pub fn stop(&self) {
        let _ = self.stop.write(1);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Client {
    stream: UnixStream,
    connection: Connection,
    /// All was said to it; what it still sends is thrown away.
    parting: bool,
    /// When it is let go unless something happens; never while the monitor is at its request.
    deadline: Option<Instant>,
}

struct Clients {
    epoll: Epoll,
    listener: UnixListener,
    service: Arc<Service>,
    clients: BTreeMap<u64, Client>,
    /// Token of the next client. Tokens are never used twice, so an event or an answer cannot reach the wrong client.
    next: u64,
    sender: Sender<(u64, Response)>,
    answers: Receiver<(u64, Response)>,
    /// Signals that an answer has come.
    answered: Arc<EventFd>,
    stop: Arc<EventFd>,
}

impl Clients {
    fn serve(&mut self) {
        let mut events = [EpollEvent::default(); MAX_CLIENTS + 3];
        let mut end: Option<Instant> = None;
        while !self.is_done(end) {
            let count = match self.epoll.wait(self.timeout(end), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error!("the API ends: {error}"),
            };
            for event in &events[..count] {
                match event.data() {
                    STOP => {
                        let _ = self.stop.read();
                        end = Some(Instant::now() + ENDING_TIME);
                    }
                    LISTENER => self.accept(),
                    ANSWER => self.pass_answers_on(),
                    token => self.attend(token, event.event_set()),
                }
            }
            let now = Instant::now();
            self.clients.retain(|_, client| client.deadline.is_none_or(|deadline| deadline > now));
        }
    }

    /// Whether the server is to end and may: nobody waits for the monitor, or all have waited long enough.
    fn is_done(&self, end: Option<Instant>) -> bool {
        let waits = || self.clients.values().any(|client| client.connection.is_asked());
        end.is_some_and(|end| end <= Instant::now() || !waits())
    }

    /// Milliseconds until the first client is let go, for epoll.
    fn timeout(&self, end: Option<Instant>) -> i32 {
        let first = self.clients.values().filter_map(|client| client.deadline).chain(end).min();
        first.map_or(-1, |deadline| {
            let millis = deadline.saturating_duration_since(Instant::now()).as_millis();
            i32::try_from(millis + 1).unwrap_or(i32::MAX)
        })
    }

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                let passing = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
                if !passing.contains(&error.kind()) {
                    warn!("the API cannot accept a client: {error}");
                    // Most likely descriptors have run out: do not ask again and again.
                    thread::sleep(Duration::from_millis(100));
                }
                return;
            }
        };
        if self.clients.len() >= MAX_CLIENTS {
            let idlest = |(_, client): &(&u64, &Client)| {
                (client.connection.is_asked(), !client.connection.is_idle(), client.deadline)
            };
            let token = self.clients.iter().min_by_key(idlest).map(|(token, _)| *token);
            token.map(|token| self.clients.remove(&token));
            debug!("the API has too many clients and lets one go");
        }
        let token = self.next;
        self.next += 1;
        let event = EpollEvent::new(EventSet::IN, token);
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event));
        match watched {
            Ok(()) => {
                let (connection, deadline) = (Connection::default(), Some(Instant::now() + IDLE_TIME));
                self.clients.insert(token, Client { stream, connection, parting: false, deadline });
            }
            Err(error) => warn!("the API cannot watch a client: {error}"),
        }
    }

    /// Something happened at a client's socket.
    fn attend(&mut self, token: u64, events: EventSet) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let open = match client.connection.is_asked() {
            // Nothing else is watched for meanwhile.
            true => !events.intersects(EventSet::HANG_UP | EventSet::ERROR),
            false => client.read(),
        };
        match open {
            true => self.advance(token),
            // Closing the socket takes it off the watch list, too.
            false => drop(self.clients.remove(&token)),
        }
    }

    fn pass_answers_on(&mut self) {
        let _ = self.answered.read();
        while let Ok((token, response)) = self.answers.try_recv() {
            if let Some(client) = self.clients.get_mut(&token) {
                client.connection.respond(&response);
                self.advance(token);
            }
        }
    }

    /// Sends a client what there is for it, and begins its next request.
    fn advance(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let before = (client.connection.is_idle(), client.connection.answered());
        let open = loop {
            if let Some((head, body)) = client.connection.request() {
                let (service, sender, answered) =
                    (Arc::clone(&self.service), self.sender.clone(), Arc::clone(&self.answered));
                let work = move || {
                    let response = service.answer(&head.method, &head.path, &body);
                    let _ = sender.send((token, response));
                    let _ = answered.write(1);
                };
                if let Err(error) = thread::Builder::new().name("api-request".into()).spawn(work) {
                    client.connection.respond(&Response::fault(503, format!("No thread for this: {error}")));
                }
            }
            if client.connection.output().is_empty() {
                break true;
            }
            match client.stream.write(client.connection.output()) {
                Ok(count) => client.connection.sent(count),
                Err(error) if is_passing(&error) => break true,
                Err(_) => break false,
            }
        };
        if !open || client.watch(&self.epoll, token, before).is_err() {
            self.clients.remove(&token);
        }
    }
}

impl Client {
    /// Reads once if something can be taken. False when the client is gone.
    fn read(&mut self) -> bool {
        if !self.connection.output().is_empty() {
            return true;
        }
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.connection.receive(&bytes[..count]);
                true
            }
            Err(error) => is_passing(&error),
        }
    }

    /// Watches for what can happen next, and for how long. `before` tells whether the connection was idle, and how many
    /// requests had been answered, before what has just been done.
    fn watch(&mut self, epoll: &Epoll, token: u64, before: (bool, u64)) -> io::Result<()> {
        let after = (self.connection.is_idle(), self.connection.answered());
        let deadline = |time| Some(Instant::now() + time);
        if self.connection.is_asked() {
            self.deadline = None;
        } else if self.connection.is_over() {
            if !self.parting {
                self.parting = true;
                self.deadline = deadline(PARTING_TIME);
                self.stream.shutdown(Shutdown::Write)?;
            }
        } else if before != after || self.deadline.is_none() {
            self.deadline = deadline(if after.0 { IDLE_TIME } else { REQUEST_TIME });
        }
        let events = match (self.connection.is_asked(), self.connection.output().is_empty()) {
            (true, _) => EventSet::empty(),
            (false, true) => EventSet::IN,
            (false, false) => EventSet::OUT,
        };
        epoll.ctl(ControlOperation::Modify, self.stream.as_raw_fd(), EpollEvent::new(events, token))
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
