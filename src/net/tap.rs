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
