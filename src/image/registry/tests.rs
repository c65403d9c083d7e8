//! Push and pull against a registry on the loopback, through a proxy that counts, and cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::disk::State;
use crate::image::{Change, Commit};
use crate::testing::Random;

/// A registry that ends with the test.
struct Registry {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// Starts Debian's docker-registry, if it is installed.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = directory.path().join("config.yml");
        let root = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(process) = command.spawn() else {
            crate::testing::skip("docker-registry is not installed");
            return None;
        };
        let registry = Registry { process, address, _directory: directory };
        for _ in 0..500 {
            if TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry did not start");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Counts what passes, and cuts answers while it has cuts left.
#[derive(Default)]
struct Proxy {
    to: AtomicU64,
    from: AtomicU64,
    /// Answers to cut after 200,000 bytes.
    cuts: AtomicI64,
}

impl Proxy {
    fn start(target: &str) -> (Arc<Self>, String) {
        let proxy = Arc::new(Proxy::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shared, target) = (proxy.clone(), target.to_string());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&target).unwrap();
                let (a, b) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (up, down) = (shared.clone(), shared.clone());
                std::thread::spawn(move || pass(a, b, &up.to, None));
                std::thread::spawn(move || pass(server, client, &down.from, Some(&down.cuts)));
            }
        });
        (proxy, address)
    }

    /// What passed since the last time: to the registry, and from it.
    fn taken(&self) -> (u64, u64) {
        (self.to.swap(0, Ordering::SeqCst), self.from.swap(0, Ordering::SeqCst))
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64, cuts: Option<&AtomicI64>) {
    let (mut buffer, mut passed) = ([0; 1 << 14], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        count.fetch_add(len as u64, Ordering::SeqCst);
        passed += len;
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        if passed > 200_000 && cuts.is_some_and(|cuts| cuts.fetch_sub(1, Ordering::SeqCst) > 0) {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

/// A version with `size` bytes of noise.
fn version(
    store: &Store,
    lease: &mut Lease,
    parent: Option<&Descriptor>,
    seed: u64,
    size: u64,
) -> Descriptor {
    let mut file = tempfile::tempfile().unwrap();
    let mut random = Random(seed);
    let noise: Vec<u8> = (0..size / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    file.write_all(&noise).unwrap();
    let about = Commit { parent, message: "noise", ..Commit::new(UNIX_EPOCH) };
    let change = Change { file: &file, size: 64 << 20, changes: vec![(0..size, State::Data)] };
    store.commit(lease, &about, Some(&change)).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

const QUIET: Progress = &|_, _, _| {};

#[test]
fn only_what_is_missing_travels() {
    let Some(registry) = Registry::start() else { return };
    let (proxy, address) = Proxy::start(&registry.address);
    let client = Client::new(&address, "team/disk", None);
    let (_a, here) = store();
    let mut lease = here.lease().unwrap();
    let first = version(&here, &mut lease, None, 1, 3 << 20);
    let second = version(&here, &mut lease, Some(&first), 2, 100 << 10);

    let moved = here.push(&first, &client, "1", QUIET).unwrap();
    assert_eq!(moved.blobs, 2);
    assert!((3 << 20..4 << 20).contains(&proxy.taken().0));
    let moved = here.push(&second, &client, "2", QUIET).unwrap();
    let (to, from) = proxy.taken();
    assert!(moved.blobs == 2 && to < 300 << 10 && from < 10 << 10, "{to} {from}");
    assert_eq!(here.push(&second, &client, "again", QUIET).unwrap(), Moved::default());
    assert!(proxy.taken().0 < 10 << 10);

    let (_b, there) = store();
    let mut held = there.lease().unwrap();
    let (pulled, _) = there.pull(&mut held, &client, "1", QUIET).unwrap();
    assert_eq!(pulled.digest, first.digest);
    assert!((3 << 20..4 << 20).contains(&proxy.taken().1));
    let (pulled, moved) = there.pull(&mut held, &client, "2", QUIET).unwrap();
    let (to, from) = proxy.taken();
    assert!(pulled == second && moved.blobs == 2 && to < 10 << 10 && from < 300 << 10, "{to} {from}");
    there.tag(&"disk:2".parse().unwrap(), &pulled).unwrap();
    assert!(there.verify(|_| {}).unwrap().is_empty());
    assert_eq!(there.unpack(&pulled, u64::MAX).unwrap().layers.len(), 2);
}

#[test]
fn broken_connections_are_taken_up_again() {
    let Some(registry) = Registry::start() else { return };
    let (proxy, address) = Proxy::start(&registry.address);
    let client = Client::new(&address, "disk", None);
    let (_a, here) = store();
    let image = version(&here, &mut here.lease().unwrap(), None, 3, 4 << 20);
    here.push(&image, &client, "1", QUIET).unwrap();
    proxy.taken();
    // Each connection brings some bytes: none is asked for twice.
    proxy.cuts.store(9, Ordering::SeqCst);
    let (_b, there) = store();
    let (_, moved) = there.pull(&mut there.lease().unwrap(), &client, "1", QUIET).unwrap();
    let from = proxy.taken().1;
    assert!(moved.blobs == 2 && from < 5 << 20, "{from}");
}

#[test]
fn refusals_say_why() {
    let Some(registry) = Registry::start() else { return };
    let client = Client::new(&registry.address, "nothing", None);
    let (_a, here) = store();
    let mut lease = here.lease().unwrap();
    let error = here.pull(&mut lease, &client, "1", QUIET).unwrap_err().to_string();
    assert!(error.contains("refuses to give manifest `1` in `nothing` (404"), "{error}");
    let gone = Client::new("127.0.0.1:1", "a", None);
    assert!(matches!(here.pull(&mut lease, &gone, "1", QUIET), Err(Error::Connection { .. })));
}

#[test]
fn skopeo_copies_what_was_pushed() {
    let Some(registry) = Registry::start() else { return };
    let client = Client::new(&registry.address, "disk", None);
    let (directory, here) = store();
    let image = version(&here, &mut here.lease().unwrap(), None, 4, 1 << 20);
    here.push(&image, &client, "1", QUIET).unwrap();
    let layout = directory.path().join("layout");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]);
    skopeo
        .arg(format!("docker://{}/disk:1", registry.address))
        .arg(format!("oci:{}:copied", layout.display()));
    let Ok(status) = skopeo.stderr(Stdio::null()).status() else { return };
    assert!(status.success());
    let copied = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let names: Vec<String> = copied.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(names.contains(&image.digest.hex()), "the manifest comes back bit for bit");
    assert_eq!(names.len(), 3);
}
