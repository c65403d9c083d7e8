//! A proxy that counts what passes, cuts connections, and holds back requests.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;

/// What is shared by all connections.
#[derive(Default)]
pub struct Proxy {
    to: AtomicU64,
    from: AtomicU64,
    /// Answers to cut after 200,000 bytes.
    pub cuts: AtomicI64,
    /// Bytes of answers that pass before nothing does any more; 0 is no limit.
    pub most: AtomicU64,
    /// Requests with PATCH that pass before one is held back and nothing moves any more; negative is no limit.
    pub pieces: AtomicI64,
    /// Whether something is held back.
    held: AtomicI64,
}

/// The way from the registry or to it.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    To,
    From,
}

impl Proxy {
    /// Starts one before `target`; gives its address.
    pub fn start(target: &str) -> (Arc<Self>, String) {
        let proxy = Arc::new(Proxy { pieces: AtomicI64::new(-1), ..Proxy::default() });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (shared, target) = (Arc::clone(&proxy), target.to_string());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let (a, b) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || up.pass(a, b, Way::To));
                thread::spawn(move || down.pass(server, client, Way::From));
            }
        });
        (proxy, address)
    }

    /// What passed since the last time: to the registry, and from it.
    pub fn taken(&self) -> (u64, u64) {
        (self.to.swap(0, SeqCst), self.from.swap(0, SeqCst))
    }

    /// Whether something is held back.
    pub fn holds(&self) -> bool {
        self.held.load(SeqCst) > 0
    }

    /// Everything passes again.
    pub fn open(&self) {
        self.most.store(0, SeqCst);
        self.pieces.store(-1, SeqCst);
        self.held.store(0, SeqCst);
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, way: Way) {
        let (mut buffer, mut passed) = (vec![0; 1 << 14], 0);
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let count = if way == Way::To { &self.to } else { &self.from };
            // A client that waits for answers begins a request with a packet.
            let piece = way == Way::To && buffer.starts_with(b"PATCH ") && self.pieces.load(SeqCst) >= 0;
            let most = self.most.load(SeqCst);
            if piece && self.pieces.fetch_sub(1, SeqCst) == 0
                || way == Way::From && most > 0 && count.load(SeqCst) > most
            {
                self.pieces.store(0, SeqCst);
                self.held.fetch_add(1, SeqCst);
                // Until the client is gone.
                while matches!(from.read(&mut buffer), Ok(1..)) {}
                break;
            }
            count.fetch_add(len as u64, SeqCst);
            passed += len;
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
            if way == Way::From && passed > 200_000 && self.cuts.fetch_sub(1, SeqCst) > 0 {
                break;
            }
        }
        let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    }
}
