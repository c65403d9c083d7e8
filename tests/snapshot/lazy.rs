//! Memory that comes when it is used: from files, or from another process.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use rvmm::arch::x86_64::layout::{VMCLOCK, VMGENID};

use super::counter::{address, counting, goes_on_from};
use super::world::{World, memory, refused};
use crate::common::host;
use crate::common::machine::Running;
use crate::need;

const LAZY: [&str; 2] = ["--memory-mode", "lazy"];

/// Whether this user may fill memory when it is used.
fn offered() -> host::Offer {
    let device = fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let everyone =
        fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1");
    // SAFETY: a plain call.
    match device || everyone || unsafe { libc::geteuid() } == 0 {
        true => Ok(()),
        false => Err("userfaultfd is not for this user".into()),
    }
}

/// A chain of two snapshots, `s1` and `s2`; where the guest counts.
fn two(world: &World) -> u64 {
    let source = counting(world, "source").cpus(2).start();
    let at = address(&source);
    world.create("source", "s1", &[]);
    source.says_times("\ncounter ", 8);
    world.create("source", "s2", &["--base", &world.text("s1"), "--stop"]);
    source.finish();
    at
}

#[test]
fn a_machine_whose_memory_comes_later_is_the_same() {
    need!(host::kvm(), offered());
    let world = World::new();
    let at = two(&world);
    let captured = world.captured("s2", at);
    let copy = world.restore_with("s2", "copy", &LAZY);
    goes_on_from(&copy, captured);
    drop(copy);
    // Saved at once, when hardly anything is there: it has all of it nevertheless.
    let waits = world.restore_with("s2", "waits", &[&LAZY[..], &["--paused"]].concat());
    world.inspect("waits");
    world.create("waits", "s3", &[]);
    world.create("waits", "s4", &["--base", &world.text("s2")]);
    drop(waits);
    let [before, mut after, mut again] = ["s2", "s3", "s4"].map(|name| memory(&world.path(name)));
    // A machine that is restored has another identity.
    for page in [VMGENID.0 as usize, VMCLOCK.0 as usize] {
        let page = page..page + 4096;
        assert_ne!(before[page.clone()], after[page.clone()]);
        after[page.clone()].copy_from_slice(&before[page.clone()]);
        again[page.clone()].copy_from_slice(&before[page]);
    }
    assert!(before == after && before == again);
    goes_on_from(&world.restore_with("s4", "last", &LAZY), captured);
    let console = format!("file={}", world.text("%n.log"));
    world.does(
        &[&["clone", &world.text("s4"), "-n", "3", "--name", "w", "--console", &console], &LAZY[..]].concat(),
    );
    for number in 1..=3 {
        let text = || fs::read_to_string(world.path(&format!("w-{number}.log"))).unwrap_or_default();
        super::counter::went_on_from(text, captured);
    }
}

#[test]
fn a_guest_that_restarts_while_its_memory_comes() {
    need!(host::kvm(), offered());
    let world = World::new();
    let source = world.guest("source", "smp cpus=4 end=reset").cpus(4).start();
    source.says("OK smp");
    world.create("source", "one", &["--stop"]);
    let copy = world.restore_with("one", "copy", &LAZY);
    copy.says_times("OK smp", 4);
    assert!(!copy.said().contains("FAIL"), "{}", copy.said());
}

/// A snapshot `far` of which this host has no memory, and a server for it.
fn far(world: &World) -> (u64, Running, String) {
    let at = two(world);
    for name in ["s1", "s2"] {
        fs::create_dir_all(world.path("near")).expect("a directory");
        let (from, to) = (world.path(name), world.path(&format!("near/{name}")));
        fs::create_dir(&to).expect("a directory");
        for file in
            fs::read_dir(&from).expect("a snapshot").flatten().filter(|file| file.file_name() != "memory")
        {
            fs::copy(file.path(), to.join(file.file_name())).expect("a file");
        }
    }
    let socket = world.text("memory.sock");
    let server = world.command_line(&["snapshot", "serve", &world.text("s2"), &socket]).start();
    server.says("serving");
    (at, server, format!("lazy={socket}"))
}

#[test]
fn memory_of_another_process() {
    need!(host::kvm(), offered());
    let world = World::new();
    let (at, server, mode) = far(&world);
    let captured = world.captured("s2", at);
    refused(&world.command(&["restore", &world.text("near/s2")]), &["near/s2/memory"]);
    let copy = world.restore_with("near/s2", "copy", &["--memory-mode", &mode]);
    goes_on_from(&copy, captured);
    world.create("copy", "s3", &[]);
    let later = world.captured("s3", at);
    // All of it is here now.
    server.kill();
    goes_on_from(&world.restore("s3", "again"), later);
    drop(copy);
    let gone = world.command(&["restore", &world.text("near/s2"), "--memory-mode", &mode]);
    refused(&gone, &["memory.sock"]);
    // The socket of a dead one is replaced, that of one that lives is not.
    let socket = world.text("memory.sock");
    let again = world.command_line(&["snapshot", "serve", &world.text("s2"), &socket, "--json"]).start();
    again.says("}");
    let said: serde_json::Value = serde_json::from_str(&again.said()).expect("a report");
    assert_eq!(said["socket"], socket);
    refused(
        &world.command(&["snapshot", "serve", &world.text("s2"), &world.text("memory.sock")]),
        &["memory.sock"],
    );
}

/// The first page of the top of a chain, which a server has for this client.
fn first_page(mut client: &UnixStream) -> [u8; 4096] {
    let (layer, pages, first) = (0_u32.to_le_bytes(), 1_u32.to_le_bytes(), 0_u64.to_le_bytes());
    client.write_all(&[&layer[..], &pages, &first].concat()).expect("a server");
    let mut page = [0; 4096];
    client.read_exact(&mut page).expect("a page");
    page
}

#[test]
fn a_server_that_has_no_room_for_a_client_serves_the_others() {
    need!(host::kvm());
    let world = World::new();
    two(&world);
    let socket = world.text("memory.sock");
    let server = world.command_line(&["snapshot", "serve", &world.text("s2"), &socket]);
    let server = server.soft_limit(libc::RLIMIT_NOFILE, 32).start();
    server.says("serving");
    let connect = || UnixStream::connect(&socket).expect("a server");
    let first = connect();
    let page = first_page(&first);
    let crowd: Vec<_> = (0..40).map(|_| connect()).collect();
    server.complains("finds no room");
    assert!(first_page(&first) == page);
    drop(crowd);
    assert!(first_page(&connect()) == page, "it takes clients again");
}

/// It ended because its memory could not be had; the guest has seen nothing wrong.
#[track_caller]
fn lost(world: &World, snapshot: &str, mode: &str, words: &[&str]) {
    let ended = world.restore_with(snapshot, "copy", &["--memory-mode", mode]).finish();
    assert!(!ended.out.contains("CORRUPT") && !ended.out.contains("FAIL"), "{ended}");
    assert_eq!(ended.status, 126, "{ended}");
    assert!(words.iter().all(|word| ended.err.contains(word)), "{words:?} are not in {ended}");
}

#[test]
fn damage_is_found_when_it_is_served() {
    need!(host::kvm(), offered());
    let world = World::new();
    let (at, _server, mode) = far(&world);
    let path = world.path("s2/memory");
    let whole = fs::read(&path).expect("pages");
    // In the very page that the guest counts in.
    let mut changed = whole.clone();
    changed[at as usize] ^= 1;
    fs::write(&path, &changed).expect("pages");
    lost(&world, "s2", "lazy", &["s2/memory", "damaged"]);
    lost(&world, "near/s2", &mode, &["s2/memory", "damaged"]);
    fs::write(&path, &whole).expect("pages");
    drop(world.restore_with("s2", "copy", &LAZY));
}

#[test]
fn a_server_that_says_nothing_or_nonsense() {
    need!(host::kvm(), offered());
    let world = World::new();
    let (_, _server, _) = far(&world);
    for nonsense in [false, true] {
        let path = world.path("odd.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let serve = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let mut question = [0; 16];
            while nonsense && client.read_exact(&mut question).is_ok() {
                let pages = u32::from_le_bytes(question[4..8].try_into().expect("four bytes"));
                let _ = client.write_all(&vec![0x5a; pages as usize * 4096]);
            }
        });
        let words = if nonsense { &["damaged"][..] } else { &["odd.sock"] };
        lost(&world, "near/s2", &format!("lazy={}", path.display()), words);
        serve.join().expect("no panic");
        fs::remove_file(&path).expect("a socket");
    }
}
