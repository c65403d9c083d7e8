//! The server: one thread that waits for all clients of a machine's socket at once (epoll(7)).
//!
//! A client that is slow, silent or hostile costs a place and some memory for a limited time, and holds nobody up.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Service;
use super::connection::Connection;
use super::http::{Head, Response};

/// Clients at the same time. For one more, the one that has been silent for the longest time is let go.
const MAX_CLIENTS: usize = 32;
/// How long a client may take over one request, or over reading the answer.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a client may stay without a request.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a client whose request was refused may go on sending it. Closed at once, the socket would take the answer with it.
const PARTING_TIME: Duration = Duration::from_secs(2);

const STOP: u64 = 0;
const LISTENER: u64 = 1;

/// A server that runs. It ends when this value is dropped; answers that are ready are sent before.
pub struct Server {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts answering the clients of `listener`.
    ///
    /// # Errors
    /// When the host gives no more descriptors or threads.
    pub fn start(listener: UnixListener, service: Service) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(stop.as_raw_fd(), STOP)?;
        watch(listener.as_raw_fd(), LISTENER)?;
        let mut clients = Clients { epoll, listener, service, clients: BTreeMap::new(), next: LISTENER + 1 };
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
    /// When it is let go unless something happens.
    deadline: Instant,
}

struct Clients {
    epoll: Epoll,
    listener: UnixListener,
    service: Service,
    clients: BTreeMap<u64, Client>,
    /// Token of the next client. Tokens are never used twice, so an event cannot reach the wrong client.
    next: u64,
}

impl Clients {
    fn serve(&mut self) {
        let mut events = [EpollEvent::default(); MAX_CLIENTS + 2];
        loop {
            let count = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error!("the API ends: {error}"),
            };
            for event in &events[..count] {
                match event.data() {
                    STOP => return,
                    LISTENER => self.accept(),
                    token => self.attend(token),
                }
            }
            let now = Instant::now();
            self.clients.retain(|_, client| client.deadline > now);
        }
    }

    /// Milliseconds until the first client is let go, for epoll.
    fn timeout(&self) -> i32 {
        let first = self.clients.values().map(|client| client.deadline).min();
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
            let idlest = |(_, client): &(&u64, &Client)| (!client.connection.is_idle(), client.deadline);
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
                let deadline = Instant::now() + IDLE_TIME;
                self.clients.insert(
                    token,
                    Client { stream, connection: Connection::default(), parting: false, deadline },
                );
            }
            Err(error) => warn!("the API cannot watch a client: {error}"),
        }
    }

    /// Something happened at a client's socket.
    fn attend(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let before = (client.connection.is_idle(), client.connection.answered());
        let service = &self.service;
        let answer = |head: &Head, body: &[u8]| service.answer(&head.method, &head.path, body);
        let open = client.exchange(&answer);
        let after = (client.connection.is_idle(), client.connection.answered());
        if open && client.connection.is_over() && !client.parting {
            client.parting = true;
            client.deadline = Instant::now() + PARTING_TIME;
            let _ = client.stream.shutdown(Shutdown::Write);
        } else if before != after {
            client.deadline = Instant::now() + if after.0 { IDLE_TIME } else { REQUEST_TIME };
        }
        let wanted = if client.connection.output().is_empty() { EventSet::IN } else { EventSet::OUT };
        let event = EpollEvent::new(wanted, token);
        let watched = self.epoll.ctl(ControlOperation::Modify, client.stream.as_raw_fd(), event);
        if !open || watched.is_err() {
            // Closing the socket takes it off the watch list, too.
            self.clients.remove(&token);
        }
    }
}

impl Client {
    /// Reads once if nothing waits to be sent, and sends what can be sent. False when the client is gone.
    fn exchange(&mut self, answer: &dyn Fn(&Head, &[u8]) -> Response) -> bool {
        let mut ended = false;
        if self.connection.output().is_empty() {
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => ended = true,
                Ok(count) => self.connection.receive(&bytes[..count], answer),
                Err(error) if is_passing(&error) => {}
                Err(_) => return false,
            }
        }
        while !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(count) => self.connection.sent(count, answer),
                Err(error) if is_passing(&error) => return true,
                Err(_) => return false,
            }
        }
        !ended
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::client::{self, Client};
    use super::super::service::tests::service;
    use super::*;

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
    fn ends_when_it_is_dropped() {
        let (_directory, path, server) = server();
        let mut client = Client::connect(&path, SECOND).unwrap();
        drop(server);
        assert!(client.send("GET", "/", None).and_then(|()| client.receive()).is_err());
        let error = client::call(&path, "GET", "/", None, SECOND).unwrap_err();
        assert!(matches!(error, client::Error::Absent { .. }), "{error:?}");
    }
}
