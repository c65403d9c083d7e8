//! What only one machine of a host has at a time: an address, a port that its passt is about to listen at.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Something that is taken as long as this value lives.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is held, not used")] Option<UnixDatagram>);

impl Claim {
    /// Takes `what` for a machine of this process, so that another one in this network namespace of the host knows that it is
    /// in use: the kernel forgets it with the process. `None` if one has it.
    pub fn take(what: &str) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("rvmm/{what}"));
        match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
            Ok(socket) => Some(Claim(Some(socket))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            // It is a help, not a condition.
            Err(_) => Some(Claim(None)),
        }
    }
}
