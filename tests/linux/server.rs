//! The server in the world of a network test: this test program again, started beside the machine with `RVMM_SERVER`.
//!
//! - names: every name has the address of the server (RFC 1035, just enough of it)
//! - `GET /data`: some MiB
//! - `GET /fetch/ADDRESS:PORT/PATH`: what the server gets there

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;
use std::thread;

use crate::common::host;
use crate::common::world::SERVER;

const DATA_SIZE: u32 = 20 << 20;

/// Set in the process that is the server.
const SERVE: &str = "RVMM_SERVER";

/// Words of a shell that start the server, which ends with the shell, and wait until it listens.
pub fn start() -> String {
    let program = std::env::current_exe().expect("this program");
    // It dies with the process that starts it, which becomes the machine.
    let serve = "setpriv --pdeathsig KILL";
    format!(
        "{SERVE}=1 {serve} {} --exact --nocapture --quiet server::the_server_of_the_other_tests >/dev/null 2>&1 </dev/null &
until busybox nc {SERVER} 8000 </dev/null >/dev/null 2>&1; do sleep 0.1; done; ",
        program.display()
    )
}

fn data() -> Vec<u8> {
    (0..DATA_SIZE).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// The MD5 sum of the data, by the tool that the guest uses too.
pub fn data_md5() -> String {
    static SUM: OnceLock<String> = OnceLock::new();
    let sum = || {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().write_all(&data()).expect("a file");
        host::run("md5sum", &[&file.path().to_string_lossy()])[..32].to_string()
    };
    SUM.get_or_init(sum).clone()
}

/// Answers names and requests until the process ends.
fn answer_all(names: UdpSocket, listener: &TcpListener) {
    thread::spawn(move || answer_names(&names));
    for client in listener.incoming().flatten() {
        thread::spawn(move || serve(client));
    }
}

#[test]
fn the_server_of_the_other_tests() {
    if std::env::var_os(SERVE).is_some() {
        let names = UdpSocket::bind((SERVER, 53)).expect("port 53");
        return answer_all(names, &TcpListener::bind(("0.0.0.0", 8000)).expect("port 8000"));
    }
    let names = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name_server = names.local_addr().expect("a port");
    let server = listener.local_addr().expect("a port");
    thread::spawn(move || answer_all(names, &listener));

    assert!(fetch(&format!("{server}/fetch/{server}/data")).expect("an answer") == data());
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x04test\x00\x00\x01\x00\x01";
    client.send_to(question, name_server).expect("a question");
    let mut answer = [0; 512];
    let size = client.recv(&mut answer).expect("an answer");
    let address: Ipv4Addr = SERVER.parse().expect("an address");
    assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
    assert!(answer[..size].ends_with(&address.octets()));
}

/// One request, one answer.
fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        match client.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend(&piece[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default();
    // At once: passt of 2023 ends a connection of the guest on which nothing has come back for 8 s. The end of the body is that of
    // the connection.
    client.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
    let body = match path.strip_prefix("/fetch/") {
        Some(place) => fetch(place)?,
        None => data(),
    };
    client.write_all(&body)
}

/// The body of what `ADDRESS:PORT/PATH` gives.
fn fetch(place: &str) -> io::Result<Vec<u8>> {
    let (address, path) = place.split_once('/').ok_or(io::ErrorKind::InvalidInput)?;
    let mut server = TcpStream::connect(address)?;
    write!(server, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(answer.split_off(end + 4))
}

/// Answers questions for an address with that of the server, other questions with nothing.
fn answer_names(socket: &UdpSocket) {
    const ANSWER: u16 = 0x8180;
    const ADDRESS: [u8; 2] = [0, 1];
    let server: Ipv4Addr = SERVER.parse().expect("an address");
    let mut question = [0; 512];
    while let Ok((size, client)) = socket.recv_from(&mut question) {
        // The header, then the name, which ends with a zero, then type and class.
        let Some(name) = question[12..size].iter().position(|byte| *byte == 0) else { continue };
        let end = 12 + name + 5;
        let answers = u16::from(question[end - 4..end - 2] == ADDRESS);
        let mut answer = question[..end].to_vec();
        answer[2..4].copy_from_slice(&ANSWER.to_be_bytes());
        answer[6..12].copy_from_slice(&[0, answers as u8, 0, 0, 0, 0]);
        if answers == 1 {
            // The name of the question; an address, for a minute.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(server.octets());
        }
        let _ = socket.send_to(&answer, client);
    }
}
