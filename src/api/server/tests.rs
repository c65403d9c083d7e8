//! The server against real sockets: clients that are slow, silent, hostile or many.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::api::client::{self, Client};
use crate::api::service::tests::service;
use crate::vmm::request::Request;

fn server() -> (tempfile::TempDir, PathBuf, Server) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = Server::start(UnixListener::bind(&path).unwrap(), service().0).unwrap();
    (directory, path, server)
}

/// Less than any client is given, so that nobody is answered only because another one was let go.
const SOON: Duration = Duration::from_secs(9);

#[test]
fn answers_clients() {
    let (_directory, path, _server) = server();
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "web");
    let mut client = Client::connect(&path, SOON).unwrap();
    for _ in 0..100 {
        client.send("GET", "/vm", None).unwrap();
        assert_eq!(client.receive().unwrap()["state"], "Running");
    }
    let error = client::call(&path, "GET", "/vmm", None, SOON).unwrap_err().to_string();
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
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "web");
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
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "web");
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
        let mut client = Client::connect(&path, SOON * 5).unwrap();
        client.send("PATCH", "/vm", Some(&json!({ "state": "Paused" }))).unwrap();
        client
    };
    let (mut patient, impatient) = (pause(), pause());
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "slow");
    drop(impatient);
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "slow");
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert!(patient.receive().unwrap().is_null());
    // The end waits for an answer that is on its way.
    let mut last = pause();
    assert_eq!(client::call(&path, "GET", "/", None, SOON).unwrap()["id"], "slow");
    release.send(()).unwrap();
    drop(server);
    assert!(last.receive().unwrap().is_null());
}

#[test]
fn ends_when_it_is_dropped() {
    let (_directory, path, server) = server();
    let mut client = Client::connect(&path, SOON).unwrap();
    drop(server);
    assert!(client.send("GET", "/", None).and_then(|()| client.receive()).is_err());
    let error = client::call(&path, "GET", "/", None, SOON).unwrap_err();
    assert!(matches!(error, client::Error::Absent { .. }), "{error:?}");
}
