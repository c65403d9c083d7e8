//! `rvmm cp`: files between the host and a machine that runs.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::thread;

use super::output::Failure;
use super::{Common, guest, machines};
use crate::agent::{self, Client, End, Event};
use crate::api::name::Name;
use crate::api::runtime::Machine;
use crate::image;
use crate::image::tar::{self, Archive, Kind};

/// Permissions that a file may have that comes from a guest: what it may do there is not what it may do here.
const HARMLESS: u32 = 0o777;

/// What a directory is refused with.
const IS_DIRECTORY: i32 = libc::EISDIR;

// Options of `cp`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm cp web:/var/log/messages .
  rvmm cp site.tar web:/srv/
  rvmm cp config/ web:/etc/app
  pg_dump shop | rvmm cp - db:/root/shop.sql

Files keep their permissions; `-` is standard input or output. A file appears whole or not at all. Directories go through \
`tar` on both sides; what comes to the host belongs to you and has no devices and no set-user-ID programs in it, and what goes to \
the guest belongs to its root. rvmm-agent must run in the guest.")]
pub struct Args {
    /// What is copied: NAME:PATH in a machine, or PATH on the host
    #[arg(value_name = "FROM")]
    from: Place,
    /// Where to; into it, if it is a directory
    #[arg(value_name = "TO")]
    to: Place,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Guest { name: String, path: String },
    Host(PathBuf),
    Stream,
}

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        match text.split_once(':') {
            // A path with a colon is written `./a:b`.
            Some((name, path)) if name.parse::<Name>().is_ok() => {
                Place::Guest { name: name.into(), path: path.into() }
            }
            _ if text == "-" => Place::Stream,
            _ => Place::Host(text.into()),
        }
    }
}

/// Copies what is asked for.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    match (&args.from, &args.to) {
        (Place::Guest { .. }, Place::Guest { .. }) => {
            Err(Failure::usage("One of both places is on the host: from machine to machine, copy twice"))
        }
        (Place::Guest { name, path }, to) => fetch(&machines::one(common, name)?, plain(path)?, to),
        (from, Place::Guest { name, path }) => send(from, &machines::one(common, name)?, plain(path)?),
        _ => Err(Failure::usage("One of both places is in a machine: NAME:PATH")),
    }
    .map(|()| 0)
}

fn plain(path: &str) -> Result<&str, Failure> {
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(Failure::usage(format!("A path in a machine starts with `/`, unlike `{path}`"))),
    }
}

fn is_directory(error: &agent::Error) -> bool {
    matches!(error, agent::Error::Refused { errno: Some(IS_DIRECTORY), .. })
}

/// The last part of a path, by which a copy is called.
fn last(path: &str) -> Result<&str, Failure> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." => {
            Err(Failure::usage(format!("`{path}` has no name for the copy: say the whole path of it")))
        }
        name => Ok(name),
    }
}

fn on_host(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let text = format!("Cannot {doing} {}", path.display());
    move |error| Failure::refused(format!("{text}: {error}"))
}

/// From a guest.
fn fetch(machine: &Machine, path: &str, to: &Place) -> Result<(), Failure> {
    let mut client = guest::connect(machine)?;
    let download = match client.read(path) {
        Err(error) if is_directory(&error) => return fetch_tree(machine, path, to),
        download => download.map_err(Failure::refused)?,
    };
    let Place::Host(target) = to else {
        return download.copy(&mut io::stdout().lock()).map(drop).map_err(Failure::refused);
    };
    let target = if target.is_dir() { target.join(last(path)?) } else { target.clone() };
    // Of a link, it is the file that is replaced.
    let target = fs::canonicalize(&target).unwrap_or(target);
    if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
        let mut file = File::options().write(true).open(&target).map_err(on_host("open", &target))?;
        return download.copy(&mut file).map(drop).map_err(Failure::refused);
    }
    let mode = download.mode & HARMLESS;
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned());
    let beside = target.with_file_name(format!(".{}.rvmm-{}", name.unwrap_or_default(), process::id()));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&beside);
    let mut file = file.map_err(on_host("make", &target))?;
    let copied = download.copy(&mut file).map_err(Failure::refused).and_then(|_| {
        let finish = || {
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&beside, &target)
        };
        finish().map_err(on_host("write", &target))
    });
    if copied.is_err() {
        let _ = fs::remove_file(&beside);
    }
    copied
}

/// To a guest.
fn send(from: &Place, machine: &Machine, path: &str) -> Result<(), Failure> {
    let mut client = guest::connect(machine)?;
    let (mut source, mode, name): (Box<dyn Read>, _, _) = match from {
        Place::Host(source) => {
            let file = File::open(source).map_err(on_host("open", source))?;
            let found = file.metadata().map_err(on_host("read", source))?;
            if found.is_dir() {
                return send_tree(source, machine, path);
            }
            (Box::new(file), found.permissions().mode(), source.to_str().map(last))
        }
        _ => (Box::new(io::stdin().lock()), 0o644, None),
    };
    let inside = |path: &str| match &name {
        Some(Ok(name)) => Ok(format!("{}/{name}", path.trim_end_matches('/'))),
        _ => Err(Failure::usage(format!("`{path}` is a directory: say the whole path of the copy"))),
    };
    let target = if path.ends_with('/') { inside(path)? } else { path.to_string() };
    match client.write(&target, mode, &mut source) {
        // The guest says so before it takes anything.
        Err(error) if is_directory(&error) => client.write(&inside(&target)?, mode, &mut source),
        written => written,
    }
    .map(drop)
    .map_err(Failure::refused)
}

/// Starts `tar` on the host.
fn host_tar(directory: &Path, arguments: &[&str]) -> process::Command {
    let mut tar = process::Command::new("tar");
    tar.arg("-C").arg(directory).args(arguments);
    tar
}

fn host_tar_failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::refused("Directories are copied by tar, which this host lacks: install it")
        }
        _ => Failure::refused(format!("Cannot start tar: {error}")),
    }
}

/// Starts a program of the guest that copies directories, as root wherever the commands of its image run.
fn in_guest(client: Client, argv: &[&str]) -> Result<agent::Running, Failure> {
    let argv = argv.iter().map(|word| word.to_string()).collect();
    let (user, directory) = (Some("0".into()), Some("/".into()));
    client.exec(&agent::Command { argv, user, directory, ..agent::Command::default() }).map_err(|error| {
        match error {
            agent::Error::Refused { errno: Some(libc::ENOENT), .. } => Failure::refused(
                "Directories are copied by tar, which the guest lacks: copy the files one by one",
            ),
            error => Failure::refused(error),
        }
    })
}

/// Waits for the end of a program in the guest; its output goes to `out`.
fn finish(mut running: agent::Running, out: &mut impl Write) -> Result<(), Failure> {
    let mut said = Vec::new();
    loop {
        match running.event().map_err(Failure::refused)? {
            Event::Output(bytes) => {
                out.write_all(bytes)
                    .map_err(|error| Failure::refused(format!("Cannot write the copy: {error}")))?;
            }
            Event::ErrorOutput(bytes) => said.extend(bytes.iter().take(300_usize.saturating_sub(said.len()))),
            Event::End(End::Status(0)) => return Ok(()),
            Event::End(_) => {
                let said = String::from_utf8_lossy(&said);
                let line: String =
                    said.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
                return Err(Failure::refused(format!("The guest could not copy all of it: {line}")));
            }
        }
    }
}

fn fetch_tree(machine: &Machine, path: &str, to: &Place) -> Result<(), Failure> {
    let running = in_guest(guest::connect(machine)?, &["tar", "-C", path, "-cf", "-", "."])?;
    let _ = running.control().end_input();
    let Place::Host(target) = to else { return finish(running, &mut io::stdout().lock()) };
    // A new directory: nothing that is there can be changed by what comes.
    let target = if target.is_dir() { target.join(last(path)?) } else { target.clone() };
    fs::create_dir(&target).map_err(on_host("make the directory", &target))?;
    let mut child = host_tar(&target, &["--no-same-owner", "-xf", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(host_tar_failed)?;
    let copied = match child.stdin.take() {
        Some(mut stdin) => tamed(running, &mut stdin),
        None => Ok(()),
    };
    let status = child.wait().map_err(host_tar_failed)?;
    copied?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::refused(format!("tar could not unpack all of it into {}", target.display()))),
    }
}

/// As [`finish`], of a program that makes an archive: only what can do no harm here is passed on.
fn tamed(running: agent::Running, to: &mut (impl Write + Send)) -> Result<(), Failure> {
    let (from, mut guest) = io::pipe().map_err(Failure::refused)?;
    thread::scope(|scope| {
        let taming = scope.spawn(move || tame(BufReader::with_capacity(64 << 10, from), to));
        let copied = finish(running, &mut guest);
        drop(guest);
        let tamed = taming.join().unwrap_or(Ok(())).map_err(Failure::refused);
        // Whoever stopped reading has said why.
        tamed.and(copied)
    })
}

/// Copies an archive without devices, and without permissions to act as somebody else.
fn tame(mut from: impl Read, to: &mut impl Write) -> Result<(), image::Error> {
    let mut archive = Archive::new(&mut from, u64::MAX);
    let writing = |source| image::Error::Io { doing: "write", path: "the copy".into(), source };
    while let Some(found) = archive.next()? {
        if matches!(found.kind, Kind::Character | Kind::Block) {
            continue;
        }
        let entry = tar::Entry {
            path: &found.path,
            link: &found.link,
            kind: found.kind,
            mode: found.mode & HARMLESS as u16,
            uid: found.uid,
            gid: found.gid,
            mtime: found.mtime,
            size: found.size,
            device: (0, 0),
            xattrs: &BTreeMap::new(),
        };
        entry.write(&mut archive, to).map_err(writing)?;
    }
    tar::end(to).map_err(writing)?;
    io::copy(&mut from, &mut io::sink()).map(drop).map_err(writing)
}

fn send_tree(from: &Path, machine: &Machine, path: &str) -> Result<(), Failure> {
    let exists = match guest::connect(machine)?.read(path) {
        Err(agent::Error::Refused { errno: Some(IS_DIRECTORY), .. }) => true,
        Err(agent::Error::Refused { .. }) => false,
        Ok(_) => {
            return Err(Failure::refused(format!(
                "{path} is a file in the guest, no directory can stand there"
            )));
        }
        Err(error) => return Err(Failure::refused(error)),
    };
    let target = match exists || path.ends_with('/') {
        true => format!("{}/{}", path.trim_end_matches('/'), last(&from.to_string_lossy())?),
        false => path.to_string(),
    };
    finish(in_guest(guest::connect(machine)?, &["mkdir", "-p", &target])?, &mut io::sink())?;
    let running = in_guest(guest::connect(machine)?, &["tar", "-C", &target, "-xof", "-"])?;
    let mut child =
        host_tar(from, &["-cf", "-", "."]).stdout(Stdio::piped()).spawn().map_err(host_tar_failed)?;
    let (control, stdout) = (running.control(), child.stdout.take());
    let feeder = thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        if let Some(mut stdout) = stdout {
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                if control.input(&piece[..count]).is_err() {
                    return;
                }
            }
        }
        let _ = control.end_input();
    });
    let copied = finish(running, &mut io::sink());
    let status = child.wait().map_err(host_tar_failed)?;
    let _ = feeder.join();
    copied?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::refused(format!("tar could not read all of {}", from.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_machines_from_paths() {
        let guest = |name: &str, path: &str| Place::Guest { name: name.into(), path: path.into() };
        assert_eq!(Place::from("web:/a:b"), guest("web", "/a:b"));
        assert_eq!(Place::from("-"), Place::Stream);
        for path in ["a", "./a:b", "/a:b", "../web:x", ""] {
            assert_eq!(Place::from(path), Place::Host(path.into()), "{path}");
        }
        assert_eq!(last("/a/b/").ok(), Some("b"));
        assert!(last("/").is_err() && last("..").is_err());
    }
}
