//! What goes wrong every day, in one clear line.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::common::machine::Machine;
use crate::home::Home;
use crate::need;
use crate::server::{self, Registry};

#[test]
fn names_that_nobody_has() {
    need!(server::offered());
    let registry = Registry::start();
    let address = &registry.address;
    let home = Home::new();
    home.version("disk:1", None, 60, 1 << 20);
    home.told(&["push", "disk:1", &format!("{address}/team/disk:stable")]);
    home.run(&["pull", &format!("{address}/team/dsk:stable")]).failed(1, &["has no repository `team/dsk`"]);
    home.run(&["pull", &format!("{address}/team/disk:stabel")])
        .failed(1, &["has no tag `stabel` in `team/disk`, did you mean `stable`?"]);
    home.run(&["push", "dsk:1", &format!("{address}/a:1")])
        .failed(1, &["There is no image `dsk:1`", "did you mean `disk:1`?"]);
    home.run(&["push", "disk:1", "disk:2"]).failed(125, &["begins with no registry", "REGISTRY/REPO:TAG"]);
    home.run(&["pull", "alpine:3"]).failed(125, &["docker.io/REPO:TAG"]);
    home.run(&["pull", "a.b/c@sha256:12"]).failed(125, &["is not a digest"]);
    home.run(&["pull", "a.b/c:1", "--size", "3x"]).failed(125, &["512M"]);
    home.run(&["login", "not a host"]).failed(125, &["HOST:PORT"]);
}

#[test]
fn hosts_that_do_not_answer() {
    let home = Home::new();
    home.run(&["pull", "nowhere.invalid/a:1"]).failed(1, &["Cannot talk to registry nowhere.invalid"]);
    // The port of a connection is taken, so nobody else comes to listen there.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let connection = listener.local_addr().and_then(TcpStream::connect).expect("a connection");
    let closed = connection.local_addr().expect("a port");
    home.run(&["pull", &format!("{closed}/a:1")])
        .failed(1, &["Cannot talk to registry 127.0.0.1", "refused"]);
}

#[test]
fn a_full_disk() {
    need!(server::offered(), small_disk("true", "", &[]).map(drop));
    let registry = Registry::start();
    let home = Home::new();
    home.version("disk:1", None, 61, 12 << 20);
    let name = format!("{}/disk:1", registry.address);
    home.told(&["push", "disk:1", &name]);
    let place = home.path("small");
    std::fs::create_dir(&place).expect("room");
    let rvmm = env!("CARGO_BIN_EXE_rvmm");
    let store = place.join("store").display().to_string();
    let script = format!(
        "{rvmm} --store {store} pull {name} 2>&1; echo $?; {rvmm} --store {store} pull {name} 2>&1; ls {store}/uploads"
    );
    let said = small_disk(&script, &place.display().to_string(), &[]).expect("what was tried before");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 3 && lines[0] == lines[2] && lines[1] == "1", "{said}");
    assert!(lines[0].contains("No space left on device"), "{said}");
}

/// Runs a script with a file system of 6 MiB at `place`.
fn small_disk(script: &str, place: &str, more: &[&str]) -> Result<String, String> {
    let mount = match place {
        "" => "mount -t tmpfs -o size=6M none /mnt".to_string(),
        place => format!("mount -t tmpfs -o size=6M none {place}"),
    };
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &format!("{mount} && {{ {script}; }}")]).args(more);
    let output = command.env("HOME", "/nonexistent").output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("no mount in a namespace: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[test]
fn warm_images_carry_secrets() {
    need!(server::offered());
    let registry = Registry::start();
    let home = Home::new();
    home.warm("web:warm");
    home.version("web:cold", None, 62, 1 << 20);
    let push =
        |tag: &str| home.run(&["push", &format!("web:{tag}"), &format!("{}/web:{tag}", registry.address)]);
    let (warm, cold) = (push("warm"), push("cold"));
    assert!(warm.status == 0 && warm.err.contains("memory") && warm.err.contains("secrets"), "{warm}");
    assert!(cold.status == 0 && cold.err.is_empty(), "{cold}");
}

#[test]
fn help_shows_how() {
    for (command, example) in
        [("pull", "docker.io/library/alpine:3"), ("push", "rvmm push web:1"), ("login", "--password-stdin")]
    {
        Machine::command_line(&[command, "--help"]).run().said(example);
    }
}
