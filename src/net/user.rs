//! A link for everyone: passt, a process without privileges, turns the guest's frames into ordinary sockets of the
//! host (`passt(1)`). It answers ARP, DHCP and neighbour discovery, so the guest configures itself.
//!
//! ```text
//!   open ──► socketpair, ports taken ── start ──► passt runs ── it ends ──► link down
//!                                                      │
//!                                 this process ends, however ──► its end of the socketpair closes, passt ends
//! ```
//!
//! The guest reaches whatever the host reaches, but not the host's loopback. Services of the host that others on its
//! network can reach, the guest can reach as well. Names are found as [`resolver`] says.
//!
//! passt serves one connection and ends with it. So no passt outlives its machine, even one that is killed: the
//! kernel closes the socket. (A parent-death signal would not do: it follows the thread that started passt, and is
//! lost when passt, started as root, becomes nobody.)

use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use log::{debug, error, warn};
use serde::{Deserialize, Serialize};

use super::{Claim, Error, Framed, Link, Offloads, Protocol, Publish, Received, resolver, window::Windows};
use crate::memory::Buffers;
use crate::sys::process::{self, Child, GIVEN_FD};
use crate::sys::socket;

/// Largest packet in bytes: what fits into the frames of passt.
const MTU: u16 = 65_520;

/// Bytes of frames that may be on their way in one direction. An ordinary user may get less (`net.core.wmem_max`).
const ROOM: u32 = 2 << 20;

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Ports of the host that lead to the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// The guest reaches the host's loopback by the address of its gateway. Otherwise the host is closed to it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub map_gw: bool,
}

/// Whether this host can run user networking.
pub fn installed() -> bool {
    process::find("passt").is_some()
}

/// A link that is served by passt.
pub struct User {
    framed: Framed,
    config: Config,
    passt: PathBuf,
    /// The other end, until passt has it.
    theirs: Option<UnixStream>,
    windows: Windows,
    _ports: Vec<Claim>,
}

impl User {
    /// Finds passt and takes the ports, if they are free. It is not started yet: another machine must know meanwhile.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let passt = process::find("passt").ok_or(Error::NoPasst)?;
        // All at once: one port cannot lead to two.
        let ports = config.publish.iter().map(|publish| {
            let protocol = publish.protocol;
            publish.take().map_err(|(address, source)| Error::Publish { address, protocol, source })
        });
        let (sockets, ports) = ports.collect::<Result<(Vec<_>, Vec<_>), _>>()?;
        // passt listens there.
        drop(sockets);
        let (ours, theirs) = UnixStream::pair().map_err(Error::Socket)?;
        // The kernel counts its own expenses too.
        let room = socket::enlarge(&theirs, ROOM).map_err(Error::Socket)? / 4 * 3;
        debug!("There is room for {room} bytes on their way to the guest");
        socket::enlarge(&ours, ROOM).map_err(Error::Socket)?;
        let framed = Framed::new(ours).map_err(Error::Socket)?;
        let windows = Windows::new(room);
        Ok(User { framed, config: config.clone(), passt, theirs: Some(theirs), windows, _ports: ports })
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["--foreground", "--quiet", "--fd"].map(String::from).into();
        arguments.push(GIVEN_FD.to_string());
        arguments.extend(["--mtu".into(), MTU.to_string()]);
        if !self.config.map_gw {
            arguments.push("--no-map-gw".into());
            arguments.extend(resolver::Host::ask().arguments(|| knows(&self.passt, "--dns-host")));
        }
        for (flag, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
            let mut specs =
                self.config.publish.iter().filter(|publish| publish.protocol == protocol).peekable();
            // A forwarded TCP port would bring the UDP port of the same number with it.
            if specs.peek().is_none() {
                arguments.extend([flag.into(), "none".into()]);
            }
            for Publish { address, host, guest, .. } in specs {
                let address = address.map_or(String::new(), |address| format!("{address}/"));
                arguments.extend([flag.into(), format!("{address}{host}:{guest}")]);
            }
        }
        arguments
    }
}

/// Whether `program` mentions `option` in its help.
fn knows(program: &Path, option: &str) -> bool {
    let help = Command::new(program).arg("--help").env_clear().stdin(Stdio::null()).output();
    help.is_ok_and(|help| {
        let text = [help.stdout, help.stderr].concat();
        String::from_utf8_lossy(&text).split_whitespace().any(|word| word == option)
    })
}

/// Whether the frame that begins with `head` is not for the host's loopback. A passt from before 2024 would hand
/// it over; nothing that a guest sends in earnest has such a destination.
fn is_for_others(head: &[u8]) -> bool {
    let ip = |at: usize| head.get(at..);
    match head.get(12..14) {
        Some([0x08, 0x00]) => match ip(30) {
            Some([a, _, _, _, ..]) => !matches!(a, 0 | 127),
            _ => false,
        },
        // `::`, `::1`, and addresses of IPv4 in two forms.
        Some([0x86, 0xdd]) => match ip(38) {
            Some([prefix @ .., a, b, _, _, _, _]) if prefix.len() == 10 => {
                *prefix != [0; 10] || !matches!([a, b], [0, 0] | [0xff, 0xff])
            }
            _ => false,
        },
        _ => true,
    }
}

/// Logs what passt has to say, and its end if that was not in order.
fn listen(child: Child, stderr: PipeReader) {
    let mut last = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let line = line.trim();
        // It complains that there is no system log, and warns of what we know.
        if line.is_empty()
            || ["Failed to send ", "Don't run as root", "Started as root"]
                .iter()
                .any(|noise| line.starts_with(noise))
        {
            continue;
        }
        warn!("passt: {line}");
        last = line.into();
    }
    match child.wait() {
        Ok(status) if status.success() => debug!("passt has ended"),
        Ok(status) if last.is_empty() => error!("passt has failed ({status})"),
        Ok(status) => error!("passt has failed ({status}): {last}"),
        Err(error) => error!("passt is lost: {error}"),
    }
}

impl Link for User {
    /// passt never looks at the checksums of the guest's packets: it takes them apart, and the host's kernel makes
    /// packets of its own.
    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, ..Offloads::default() }
    }

    fn mtu(&self) -> u16 {
        MTU
    }

    fn start(&mut self, offloads: Offloads) -> io::Result<()> {
        self.framed.mark_valid(offloads.checksum);
        let Some(theirs) = &self.theirs else { return Ok(()) };
        let arguments = self.arguments();
        debug!("Starting {} {}", self.passt.display(), arguments.join(" "));
        let (child, stderr) = process::spawn(&self.passt, &arguments, theirs.as_fd())?;
        self.theirs = None;
        thread::Builder::new()
            .name("passt".into())
            .stack_size(256 << 10)
            .spawn(move || listen(child, stderr))?;
        Ok(())
    }

    fn event(&self) -> RawFd {
        self.framed.socket().as_raw_fd()
    }

    fn wake(&mut self) -> io::Result<()> {
        self.framed.flush().map(drop)
    }

    fn room(&mut self) -> io::Result<Option<usize>> {
        self.framed.room()
    }

    fn receive(&mut self, buffers: &Buffers) -> io::Result<Received> {
        self.framed.receive(buffers)
    }

    fn send(&mut self, frame: &Buffers) -> io::Result<bool> {
        let windows = &mut self.windows;
        self.framed.send(frame, |head| {
            windows.limit(head, Instant::now());
            is_for_others(head)
        })
    }
}

#[cfg(test)]
mod tests;
