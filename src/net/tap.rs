//! A link to a tap interface of the host (Linux `networking/tuntap.rst`).
//!
//! An existing tap is used as it is; one that does not exist is made, if this process may,
//! switched on, and disappears with this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use log::{debug, warn};

use super::{ETHERNET, Error, HEADER, Link, MAX_FRAME, Offloads, Received};
use crate::memory::Buffers;
use crate::sys::tap;

/// Bytes that a VLAN tag adds to a frame.
const VLAN: usize = 4;

/// Frames that are thrown away at most when a new driver starts.
const STALE: usize = 4096;

/// A tap, open.
#[derive(Debug)]
pub struct Tap {
    file: File,
    mtu: u16,
    offloads: Offloads,
}

impl Tap {
    /// Opens the tap `name`.
    pub fn open(name: &str) -> Result<Self, Error> {
        let forbidden = |byte: u8| byte.is_ascii_whitespace() || b"/:%".contains(&byte);
        if name.is_empty() || name.len() > tap::NAME_MAX || name.bytes().any(forbidden) {
            return Err(Error::TapName { name: name.into() });
        }
        let set_up = |source| Error::SetUpTap { name: name.into(), source };
        let file = tap::open().map_err(Error::OpenTun)?;
        let existed = tap::exists(name).map_err(set_up)?;
        tap::attach(&file, name, HEADER).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied if existed => Error::ForeignTap { name: name.into() },
            io::ErrorKind::PermissionDenied => Error::NoTap { name: name.into() },
            io::ErrorKind::ResourceBusy => Error::BusyTap { name: name.into() },
            io::ErrorKind::InvalidInput => Error::NotTap { name: name.into() },
            _ => set_up(source),
        })?;
        // A tap that outlives processes may remember what an earlier one wanted.
        tap::set_offloads(&file, 0).map_err(set_up)?;
        if !existed {
            tap::bring_up(name).map_err(set_up)?;
        } else if !tap::is_up(name).map_err(set_up)? {
            warn!("Tap {name} is switched off and loses all frames: `ip link set {name} up`");
        }
        let mtu = tap::mtu(name).map_err(set_up)?.min(u16::MAX.into()) as u16;
        Ok(Tap { file, mtu, offloads: Offloads::default() })
    }
}

fn flags(offloads: Offloads) -> u32 {
    let Offloads { checksum, tso4, tso6, ecn, ufo } = offloads.consistent();
    let flag = |wanted, flag| if wanted { flag } else { 0 };
    flag(checksum, tap::TUN_F_CSUM)
        | flag(tso4, tap::TUN_F_TSO4)
        | flag(tso6, tap::TUN_F_TSO6)
        | flag(ecn && (tso4 || tso6), tap::TUN_F_TSO_ECN)
        | flag(ufo, tap::TUN_F_UFO)
}

impl Link for Tap {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn start(&mut self, offloads: Offloads) -> io::Result<()> {
        if self.offloads != offloads {
            tap::set_offloads(&self.file, flags(offloads))?;
            self.offloads = offloads;
            // What waits was made for another driver, which perhaps took more than this one.
            let mut frame = vec![0; MAX_FRAME];
            for _ in 0..STALE {
                if io::Read::read(&mut &self.file, &mut frame).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn event(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn room(&mut self) -> io::Result<Option<usize>> {
        let largest = HEADER + ETHERNET + VLAN + usize::from(self.mtu);
        Ok(Some(if self.offloads.large() { MAX_FRAME } else { largest.min(MAX_FRAME) }))
    }

    fn receive(&mut self, buffers: &Buffers) -> io::Result<Received> {
        loop {
            match buffers.read_record(self.file.as_fd()) {
                Ok(len) if len > buffers.len() => return Ok(Received::Dropped),
                Ok(len) => return Ok(Received::Frame(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, frame: &Buffers) -> io::Result<bool> {
        loop {
            match frame.write_record(self.file.as_fd()) {
                Ok(_) => return Ok(true),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(false),
                    Some(libc::EINTR) => {}
                    // The interface is gone.
                    Some(libc::EBADFD | libc::ENODEV) => return Err(error),
                    // It is switched off, short of memory, or the frame makes no sense.
                    _ => {
                        debug!("A frame was dropped: {error}");
                        return Ok(true);
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::net::testing::{in_namespace, ip};

    #[test]
    fn refuses_names_that_no_interface_has() {
        for name in ["", "sixteen-letters-", "a b", "a/b", "a:0", "tap%d"] {
            assert!(matches!(Tap::open(name), Err(Error::TapName { .. })), "{name}");
        }
    }

    #[test]
    fn makes_a_tap_that_goes_with_it() {
        if !in_namespace("net::tap::tests::makes_a_tap_that_goes_with_it") {
            return;
        }
        let tap = Tap::open("new").unwrap();
        assert!(tap::is_up("new").unwrap());
        assert_eq!(tap.mtu(), 1500);
        let error = Tap::open("new").unwrap_err();
        assert_eq!(error.to_string(), "Tap new is in use by another process");
        drop(tap);
        assert!(!tap::exists("new").unwrap());
    }

    #[test]
    fn uses_a_tap_as_it_is() {
        if !in_namespace("net::tap::tests::uses_a_tap_as_it_is") {
            return;
        }
        ip("tuntap add mine mode tap");
        ip("link set mine mtu 9000");
        let tap = Tap::open("mine").unwrap();
        assert!(!tap::is_up("mine").unwrap());
        assert_eq!(tap.mtu(), 9000);
        drop(tap);
        assert!(tap::exists("mine").unwrap());
        ip("tuntap add tun mode tun");
        ip("tuntap add many mode tap multi_queue");
        for name in ["lo", "tun", "many"] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(error, Error::NotTap { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn says_who_can_make_a_tap() {
        let test = "net::tap::tests::says_who_can_make_a_tap";
        if !in_namespace(test) {
            return;
        }
        if std::env::var_os("RVMM_TEST_UNPRIVILEGED").is_some() {
            let error = Tap::open("new").unwrap_err();
            assert!(matches!(error, Error::NoTap { .. }), "{error}");
            assert!(
                error.to_string().ends_with("`ip tuntap add new mode tap user $USER && ip link set new up`")
            );
            return;
        }
        // Root of a user namespace that does not own the network namespace.
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env("RVMM_TEST_UNPRIVILEGED", "1")
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn forgets_what_came_for_another_driver() {
        if !in_namespace("net::tap::tests::forgets_what_came_for_another_driver") {
            return;
        }
        let mut tap = Tap::open("tap0").unwrap();
        tap.start(Offloads::ALL).unwrap();
        ip("addr add 10.9.0.1/24 dev tap0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev tap0");
        let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.send_to(b"for the old driver", "10.9.0.2:1").unwrap();
        tap.start(Offloads::default()).unwrap();
        assert_eq!(tap.room().unwrap(), Some(HEADER + 14 + 4 + 1500));
        socket.send_to(b"for the new driver", "10.9.0.2:1").unwrap();
        let mut frame = [0; 2000];
        let text = loop {
            let len = io::Read::read(&mut &tap.file, &mut frame).unwrap();
            if frame[HEADER + 12..][..2] == [8, 0] {
                break &frame[HEADER + 42..len];
            }
        };
        assert_eq!(text, b"for the new driver");
        assert_eq!(frame[0], 0, "the checksum was left to a driver that does not want that");
    }
}
