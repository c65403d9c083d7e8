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
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Service;
use super::connection::Connection;
use super::http::Response;

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
        let event = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let (stop, answered) = (event()?, event()?);
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
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
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
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::super::client::{self, Client};
    use super::super::service::tests::service;
    use super::*;
    use crate::vmm::request::Request;

    fn server() -> (tempfile::TempDir, PathBuf, Server) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let server = Server::start(UnixListener::bind(&path).unwrap(), service().0).unwrap();
        (directory, path, server)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn answers_clients() {
        let (_directory, path, _server) = server();
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "web");
        let mut client = Client::connect(&path, SECOND).unwrap();
        for _ in 0..100 {
            client.send("GET", "/vm", None).unwrap();
            assert_eq!(client.receive().unwrap()["state"], "Running");
        }
        let error = client::call(&path, "GET", "/vmm", None, SECOND).unwrap_err().to_string();
        assert!(error.contains("did you mean `/vm`"), "{error}");
    }

    #[test]
    fn many_silent_clients_hold_nobody_up() {
        let (_directory, path, _server) = server();
        let mut silent: Vec<_> = (0..3 * MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for stream in &mut silent {
            // The first ones have been let go.
            let _ = stream.write_all(b"GET /v");
        }
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "web");
    }

    #[test]
    fn a_client_that_hangs_up_early_gets_its_answer() {
        let (_directory, path, _server) = server();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    }

    #[test]
    fn a_refused_client_hears_why_before_it_has_sent_all() {
        let (_directory, path, _server) = server();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n").unwrap();
        for _ in 0..100 {
            stream.write_all(&[b'x'; 16 << 10]).unwrap();
        }
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    }

    #[test]
    fn a_client_that_does_not_read_costs_no_more_than_its_place() {
        let (_directory, path, _server) = server();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_nonblocking(true).unwrap();
        let requests = b"GET / HTTP/1.1\r\n\r\n".repeat(1000);
        let mut full = 0;
        while full < 3 {
            match stream.write(&requests) {
                Ok(_) => full = 0,
                Err(_) => full += 1,
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "web");
    }

    #[test]
    fn a_request_that_takes_long_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (release, held) = mpsc::channel();
        let held = std::sync::Mutex::new(held);
        let service = Service::with_monitor("slow", move |request| {
            if request == Request::Pause {
                let _ = held.lock().unwrap().recv();
            }
            Ok(json!({ "state": "Running" }))
        });
        let server = Server::start(UnixListener::bind(&path).unwrap(), service).unwrap();
        let pause = || {
            let mut client = Client::connect(&path, SECOND * 5).unwrap();
            client.send("PATCH", "/vm", Some(&json!({ "state": "Paused" }))).unwrap();
            client
        };
        let (mut patient, impatient) = (pause(), pause());
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "slow");
        drop(impatient);
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "slow");
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(patient.receive().unwrap().is_null());
        // The end waits for an answer that is on its way.
        let mut last = pause();
        assert_eq!(client::call(&path, "GET", "/", None, SECOND).unwrap()["id"], "slow");
        release.send(()).unwrap();
        drop(server);
        assert!(last.receive().unwrap().is_null());
    }

    #[test]
    fn ends_when_it_is_dropped() {
        let (_directory, path, server) = server();
        let mut client = Client::connect(&path, SECOND).unwrap();
        drop(server);
        assert!(client.send("GET", "/", None).and_then(|()| client.receive()).is_err());
        let error = client::call(&path, "GET", "/", None, SECOND).unwrap_err();
        assert!(matches!(error, client::Error::Absent { .. }), "{error:?}");
    }
}
