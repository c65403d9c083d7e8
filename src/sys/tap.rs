//! Tap interfaces: frames through a file descriptor (Linux `networking/tuntap.rst`, `netdevice(7)`).

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

/// Longest name of an interface in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

pub use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO};

/// Opens the device that taps are made with, without blocking.
///
/// # Errors
/// `NotFound` when the kernel has no tun driver, `PermissionDenied` when the device is not the user's.
pub fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// Attaches `tun`, fresh from [`open`], to the tap `name`, which is created if there is none. Frames will carry a
/// virtio header of `header` bytes. A tap that was created here disappears when `tun` is closed.
///
/// # Errors
/// `ResourceBusy` when another process has the tap, `PermissionDenied` when the tap belongs to
/// another user or may not be created, `InvalidInput` when the interface is no tap or `name` is too long.
pub fn attach(tun: &File, name: &str, header: usize) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    let size = c_int::try_from(header).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
}

/// Says what kinds of unfinished frames the reader of `tap` takes: a set of `TUN_F_*`.
pub fn set_offloads(tap: &File, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Whether there is an interface `name`, tap or not.
pub fn exists(name: &str) -> io::Result<bool> {
    match query(name, libc::SIOCGIFINDEX) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Largest packet of interface `name` in bytes, without the Ethernet header.
pub fn mtu(name: &str) -> io::Result<u32> {
    let answer = query(name, libc::SIOCGIFMTU)?;
    // SAFETY: after SIOCGIFMTU the kernel has filled the integer member.
    Ok(unsafe { answer.ifr_ifru.ifru_mtu }.max(0) as u32)
}

/// Whether interface `name` is switched on.
pub fn is_up(name: &str) -> io::Result<bool> {
    let answer = query(name, libc::SIOCGIFFLAGS)?;
    // SAFETY: after SIOCGIFFLAGS the kernel has filled the flags.
    Ok(c_int::from(unsafe { answer.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0)
}

/// Switches interface `name` on.
pub fn bring_up(name: &str) -> io::Result<()> {
    let mut request = query(name, libc::SIOCGIFFLAGS)?;
    // SAFETY: after SIOCGIFFLAGS the kernel has filled the flags; a union of plain integers may be written.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ask(&mut request, libc::SIOCSIFFLAGS)
}

/// A request about interface `name`.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn query(name: &str, what: libc::c_ulong) -> io::Result<libc::ifreq> {
    let mut request = request(name)?;
    ask(&mut request, what)?;
    Ok(request)
}

/// Any socket reaches the interfaces of its network namespace.
fn ask(request: &mut libc::ifreq, what: libc::c_ulong) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // SAFETY: every request of this file reads and writes one `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
