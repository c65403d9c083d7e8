//! The device between a driver written by hand and real sockets of the host.

mod flow;
mod hostility;
mod lifecycle;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER, HOST_CID, Header, STREAM, op};
use super::*;
use crate::devices::virtio::mock::{self, Driver, HIGH, WRITE};
use crate::testing::PATIENCE;

/// The guest's address.
const CID: u64 = 3;

/// Receive buffers lie in RAM that nothing else uses.
const BUFFER: usize = 8192;
const BUFFERS: u16 = 64;

/// A guest with a driver, and the directory with its sockets.
struct Guest {
    driver: Driver,
    directory: tempfile::TempDir,
    /// Room in each receive buffer, its header included.
    room: usize,
    packets: VecDeque<(Header, Vec<u8>)>,
}

fn config(directory: &tempfile::TempDir) -> Config {
    Config { guest_cid: CID as u32, uds_path: Some(directory.path().join("v.sock")), vsock_id: None }
}

fn device(directory: &tempfile::TempDir) -> Box<dyn VirtioDevice> {
    crate::devices::virtio::Config::open(&config(directory), &mock::context()).unwrap()
}

impl Guest {
    /// A guest whose driver has given all its receive buffers.
    fn new() -> Self {
        let mut guest = Guest::without_buffers();
        (0..BUFFERS).for_each(|index| guest.post(index));
        guest
    }

    fn without_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let driver = Driver::started(device(&directory));
        Guest { driver, directory, room: HEADER + 4096, packets: VecDeque::new() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    /// Gives receive buffer `index` to the device, in two parts as Linux does.
    fn post(&mut self, index: u16) {
        let address = HIGH + u64::from(index) * BUFFER as u64;
        let table = self.driver.rings[RECEIVE].descriptors;
        let data = (self.room - HEADER) as u32;
        self.driver.descriptor(table, 2 * index, address, HEADER as u32, WRITE | mock::NEXT, 2 * index + 1);
        self.driver.descriptor(table, 2 * index + 1, address + HEADER as u64, data, WRITE, 0);
        self.driver.offer(RECEIVE, 2 * index);
        self.driver.kick(RECEIVE);
    }

    /// Takes what came, and gives the buffers back at once.
    fn fetch(&mut self) {
        while let Some(used) = self.driver.used(RECEIVE) {
            let address = HIGH + u64::from(used.head / 2) * BUFFER as u64;
            let mut bytes = vec![0; used.len as usize];
            self.driver.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let (header, data) = bytes.split_first_chunk::<HEADER>().unwrap();
            let header = Header::decode(header);
            assert_eq!(header.len as usize, data.len());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            self.packets.push_back((header, data.to_vec()));
            self.post(used.head / 2);
        }
    }

    /// The next packet, which comes soon.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.fetch();
            if let Some(packet) = self.packets.pop_front() {
                return packet;
            }
            assert!(Instant::now() < end, "nothing comes");
            self.driver.wait(Duration::from_millis(10));
        }
    }

    /// The next packet, which is for `op`.
    fn expect(&mut self, op: u16) -> Header {
        let (header, data) = self.packet();
        assert_eq!(header.op, op, "{header:?} {data:?}");
        header
    }

    /// All has happened that happens at once, and no packet came.
    fn expect_nothing(&mut self) {
        self.driver.work();
        self.fetch();
        assert_eq!(self.packets, []);
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        self.driver.submit(TRANSMIT, &[&header.encode(), data], &[]);
        assert!(self.driver.used(TRANSMIT).is_some(), "the packet was not taken");
    }

    /// Connects a client of the host to port 1024, and accepts it.
    fn accept_client(&mut self) -> (UnixStream, Peer) {
        let mut client = self.client("CONNECT 1024\n");
        self.driver.work();
        let request = self.expect(op::REQUEST);
        let peer = Peer::of(&request);
        self.send(&peer.header(op::RESPONSE), &[]);
        assert_eq!(line(&mut client), format!("OK {}\n", request.src_port));
        (client, peer)
    }

    /// A client that has said `text`.
    fn client(&self, text: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        client
    }

    /// A service of the host at `port`.
    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path().display())).unwrap()
    }

    /// Connects the guest to a service.
    fn reach(&mut self, service: &UnixListener, port: u32) -> (UnixStream, Peer) {
        let peer = Peer { host: port, guest: 5000 + port, buf_alloc: 1 << 20, fwd_cnt: 0 };
        self.send(&peer.header(op::REQUEST), &[]);
        assert_eq!(Peer::of(&self.expect(op::RESPONSE)), peer);
        let (stream, _) = service.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (stream, peer)
    }
}

/// One connection as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Peer {
    host: u32,
    guest: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Peer {
    /// The connection of a packet that came.
    fn of(header: &Header) -> Self {
        Peer { host: header.src_port, guest: header.dst_port, buf_alloc: 1 << 20, fwd_cnt: 0 }
    }

    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    fn data(&self, bytes: &[u8]) -> Header {
        Header { len: bytes.len() as u32, ..self.header(op::RW) }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header { flags, ..self.header(op::SHUTDOWN) }
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// What has come, without waiting; `None` at the end.
fn now(stream: &mut UnixStream) -> Option<Vec<u8>> {
    stream.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let result = stream.read_to_end(&mut all);
    stream.set_nonblocking(false).unwrap();
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(all),
        // The end is found again next time.
        Ok(_) if !all.is_empty() => Some(all),
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}
