//! The guest of a machine, as its agent shows it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use super::machines;
use super::output::Failure;
use crate::agent::{self, Client, Identity, Interface};
use crate::api::runtime::Machine;
use crate::config::VmConfig;
use crate::sys::random;
use crate::vmm::chain;
use crate::vmm::snapshot::Restore;

/// How long a guest that goes on may take to answer. Many may have started at once, and nobody is to meet one that is not yet somebody.
const GOING_ON: Duration = Duration::from_secs(60);
/// How long the agent may take to make the guest somebody, with the guest's own programs for that.
const WORK: Duration = Duration::from_secs(60);
/// How long a guest may take to find that it stood still, when it is to do so for a while.
const PAUSED: Duration = Duration::from_secs(365 * 24 * 3600);
/// How wrong a guest's clock may be: it is not set for less.
const TOLERANCE: Duration = Duration::from_millis(250);
/// Random bytes that a guest gets.
const ENTROPY: usize = 64;

/// How long after its start a machine may be without the agent that its guest starts, and how often that is looked at.
const STARTING: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);

/// The socket that leads to the guest of a machine.
pub fn socket(machine: &Machine) -> Result<PathBuf, Failure> {
    let config = machines::config(machine)?;
    match config.devices.vsock.into_iter().next() {
        Some(vsock) => Ok(vsock.socket(machine.directory())),
        None => Err(Failure::usage(format!(
            "{} has no channel to its guest: it was started with --vsock none",
            machine.name
        ))),
    }
}

/// Connects to the agent in the guest of a machine. One that has only started is waited for.
pub fn connect(machine: &Machine) -> Result<Client, Failure> {
    let socket = socket(machine)?;
    loop {
        match Client::connect(&socket, agent::PATIENCE) {
            Err(agent::Error::NoAgent | agent::Error::Silent) if machines::uptime(machine)? < STARTING => {
                thread::sleep(AGAIN);
            }
            answer => return answer.map_err(Failure::usage),
        }
    }
}

/// What a guest that was saved has to be told, for it does not know that it is another machine, or that time has passed.
pub struct News {
    socket: PathBuf,
    hostname: Option<String>,
    interfaces: Vec<Interface>,
    paused: bool,
}

impl News {
    /// For a machine with this directory; `None` if its guest cannot be told anything. With a name it becomes another
    /// machine than the one that was saved.
    pub fn of(
        restore: &Restore,
        config: &VmConfig,
        directory: &Path,
        name: Option<&str>,
        paused: bool,
    ) -> Option<Self> {
        if !restore.has_channel() {
            return None;
        }
        let socket = config.devices.vsock.first()?.socket(directory);
        let pairs = restore.config().devices.net.iter().zip(&config.devices.net);
        let changed = pairs.filter_map(|(saved, now)| match (saved.guest_mac, now.guest_mac) {
            (Some(was), Some(mac)) if was != mac => {
                Some(Interface { was: was.to_string(), mac: mac.to_string() })
            }
            _ => None,
        });
        Some(News { socket, hostname: name.map(String::from), interfaces: changed.collect(), paused })
    }

    /// Tells the guest. Returns what it could not be told, and why, in one line.
    pub fn tell(&self) -> Option<String> {
        // A guest that stands still answers when it goes on.
        let patience = if self.paused { PAUSED } else { GOING_ON };
        let mut client = match Client::connect(&self.socket, patience) {
            Ok(client) => client,
            Err(error) => return Some(format!("the guest keeps {}: {}", self.old(), chain(&error))),
        };
        match self.ask(&mut client) {
            Ok(outcome) if outcome.failed.is_empty() => None,
            Ok(outcome) => {
                let failed = outcome.failed.iter().map(|(what, why)| format!("{what} ({why})"));
                Some(format!("the guest could not change its {}", failed.collect::<Vec<_>>().join(", ")))
            }
            // It was asked, and may still do it.
            Err(error) => Some(format!("the guest may keep {}: {}", self.old(), chain(&error))),
        }
    }

    /// What a guest has of the machine that was saved until it is told.
    fn old(&self) -> String {
        let mut kept = vec!["state of its random numbers, unless its kernel has VMGenID"];
        if self.hostname.is_some() {
            kept.splice(..0, ["hostname", "machine id"]);
        }
        if !self.interfaces.is_empty() {
            kept.insert(0, "network addresses");
        }
        format!("its {}", kept.join(", "))
    }

    /// Has the agent make the guest somebody.
    fn ask(&self, client: &mut Client) -> Result<agent::Outcome, agent::Error> {
        let mut identity = Identity {
            hostname: self.hostname.clone(),
            interfaces: self.interfaces.clone(),
            entropy: vec![0; ENTROPY],
            machine_id: self.hostname.as_ref().map(|_| uuid()).transpose().map_err(agent::Error::Host)?,
            time: Some((SystemTime::now(), TOLERANCE)),
        };
        random::fill(&mut identity.entropy).map_err(agent::Error::Host)?;
        client.identity(&identity, WORK)
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> std::io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    random::fill(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What is said of a guest that greets, or does not, and is gone after that.
    fn told(greets: bool) -> String {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            stream.read_line(&mut String::new()).unwrap();
            stream.get_mut().write_all(b"OK 1\n").unwrap();
            if greets {
                let greeting = br#"{"agent":"rvmm","protocol":1}"#;
                let head = [greeting.len() as u8, 0, 0, 0, 0];
                stream.get_mut().write_all(&[&head[..], greeting].concat()).unwrap();
                stream.read_exact(&mut [0; 100]).unwrap();
            }
        });
        let news = News { socket, hostname: Some("web".into()), interfaces: Vec::new(), paused: false };
        let told = news.tell().unwrap();
        guest.join().unwrap();
        told
    }

    #[test]
    fn a_guest_that_was_asked_may_have_done_it() {
        let old = "its hostname, machine id, state of its random numbers";
        assert!(told(false).starts_with(&format!("the guest keeps {old}")), "{}", told(false));
        assert!(told(true).starts_with(&format!("the guest may keep {old}")), "{}", told(true));
    }
}
