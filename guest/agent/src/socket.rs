//! The socket that the agent listens at (`vsock(7)`, `unix(7)`).

use crate::sys::{Errno, Fd, Result, call, nr, plain};

const AF_UNIX: u16 = 1;
const AF_VSOCK: u16 = 40;
const STREAM: usize = 1;
const CLOEXEC: usize = 0o2000000;
/// Any address of this guest.
const ANY: u32 = u32::MAX;
/// The host's address.
const HOST: u32 = 2;

/// `struct sockaddr_vm`.
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

/// Where clients come from.
pub struct Listener {
    socket: Fd,
    is_vsock: bool,
}

impl Listener {
    /// Listens at a port of vsock.
    pub fn vsock(port: u32) -> Result<Self> {
        let address = VsockAddress { family: AF_VSOCK, reserved: 0, port, cid: ANY, zero: [0; 4] };
        Listener::bind(AF_VSOCK, &address, size_of::<VsockAddress>())
    }

    /// Listens at a unix socket, for tests without a guest.
    pub fn unix(path: &str) -> Result<Self> {
        let mut address = [0_u8; 110];
        if path.len() > 107 {
            return Err(Errno::NAMETOOLONG);
        }
        address[..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
        address[2..2 + path.len()].copy_from_slice(path.as_bytes());
        Listener::bind(AF_UNIX, &address, address.len())
    }

    fn bind<T>(family: u16, address: &T, len: usize) -> Result<Self> {
        let socket = Fd(plain(nr::SOCKET, [family.into(), STREAM | CLOEXEC, 0])? as i32);
        // SAFETY: the kernel reads `len` bytes, which `address` has.
        unsafe { call(nr::BIND, [socket.0 as usize, address as *const T as usize, len, 0, 0, 0]) }?;
        plain(nr::LISTEN, [socket.0 as usize, 128, 0])?;
        Ok(Listener { socket, is_vsock: family == AF_VSOCK })
    }

    /// The next client; `None` if it is not the host.
    pub fn accept(&self) -> Result<Option<Fd>> {
        let mut address = VsockAddress { family: 0, reserved: 0, port: 0, cid: 0, zero: [0; 4] };
        let mut len = size_of::<VsockAddress>() as u32;
        let arguments =
            [self.socket.0 as usize, &raw mut address as usize, &raw mut len as usize, CLOEXEC, 0, 0];
        // SAFETY: the kernel writes at most `len` bytes to `address`, and a number to `len`.
        let client = Fd(unsafe { call(nr::ACCEPT4, arguments) }? as i32);
        Ok((!self.is_vsock || address.cid == HOST).then_some(client))
    }
}
