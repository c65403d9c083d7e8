//! Pages that this process itself fills when they are first touched (userfaultfd(2), ioctl_userfaultfd(2)).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::frozen::PAGE;
use super::poll;

// From linux/userfaultfd.h: _IO, _IOR and _IOWR of type 0xaa. libc does not have them.
const NEW: libc::c_ulong = 0xaa00;
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const UNREGISTER: libc::c_ulong = 0x8010_aa01;
const COPY: libc::c_ulong = 0xc028_aa03;
const API_VERSION: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// `struct uffd_msg` of a page fault.
#[derive(Default)]
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// Ranges of this process's memory whose missing pages are filled here.
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Opens one that also serves the kernel's own accesses, as KVM's are.
    ///
    /// # Errors
    /// `PermissionDenied` when this user may not use /dev/userfaultfd, and vm.unprivileged_userfaultfd is 0.
    pub fn open() -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/userfaultfd");
        let fd = match device {
            // SAFETY: the request takes flags and gives a descriptor.
            Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), NEW, FLAGS) },
            // SAFETY: the call takes flags and gives a descriptor.
            Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) as libc::c_int },
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let this = Userfaultfd(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = [API_VERSION, 0, 0];
        this.ioctl(API, api.as_mut_ptr())?;
        Ok(this)
    }

    /// `argument` leads to a structure of the size that the request wants.
    fn ioctl(&self, request: libc::c_ulong, argument: *mut u64) -> io::Result<()> {
        // SAFETY: every caller passes a live array of 64-bit words as long as the request's structure.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// From now on, whoever touches a page of the range that is missing waits until it is filled.
    ///
    /// # Safety
    /// The range is private anonymous memory of this process with whole pages, to which no Rust reference exists: its missing pages
    /// are filled with whatever [`copy`](Self::copy) is given.
    pub unsafe fn register(&self, address: usize, len: usize) -> io::Result<()> {
        self.ioctl(REGISTER, [address as u64, len as u64, MODE_MISSING, 0].as_mut_ptr())
    }

    /// The range is ordinary memory again: pages that are missing are zero. Whoever waits for one goes on.
    pub fn unregister(&self, address: usize, len: usize) -> io::Result<()> {
        self.ioctl(UNREGISTER, [address as u64, len as u64].as_mut_ptr())
    }

    /// The address of a page that somebody waits for; `None` if nobody comes within `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<Option<usize>> {
        if !poll::readable(self.0.as_fd(), patience)? {
            return Ok(None);
        }
        let mut message = Message::default();
        let size = size_of::<Message>();
        // SAFETY: the kernel writes at most `size` bytes to the structure, any of which are valid in it.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), size) };
        match read {
            -1 => match io::Error::last_os_error() {
                error if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
                error => Err(error),
            },
            _ if message.event == EVENT_PAGEFAULT => Ok(Some(message.address as usize & !(PAGE - 1))),
            _ => Ok(None),
        }
    }

    /// Fills pages of a registered range with `bytes`, which are whole pages. Pages that are there stay as they are.
    ///
    /// # Errors
    /// `NotFound` when the range is not registered any more.
    pub fn copy(&self, address: usize, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let mut copy = [(address + done) as u64, rest.as_ptr() as u64, rest.len() as u64, 0, 0];
            let result = self.ioctl(COPY, copy.as_mut_ptr());
            let copied = copy[4] as i64;
            match result {
                Ok(()) => return Ok(()),
                // So far, and then a page that is there, or somebody changes the mapping of this process.
                Err(_) if copied > 0 => done += copied as usize,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => done += PAGE,
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
