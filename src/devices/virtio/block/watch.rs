//! One descriptor for all of a disk's: the disk gets more when it is frozen, and those of a device are fixed (epoll(7)).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// An epoll descriptor, readable while any of those that it was told is.
pub struct Watch(Option<Epoll>);

impl Watch {
    /// Watches `events`; a disk that has none never has any.
    pub fn new(events: &[RawFd]) -> io::Result<Self> {
        let watch = Watch(if events.is_empty() { None } else { Some(Epoll::new()?) });
        watch.add(events)?;
        Ok(watch)
    }

    /// Watches more; what is watched already may be among them.
    pub fn add(&self, events: &[RawFd]) -> io::Result<()> {
        let Some(epoll) = &self.0 else { return Ok(()) };
        for &event in events {
            match epoll.ctl(ControlOperation::Add, event, EpollEvent::new(EventSet::IN, 0)) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The descriptor.
    pub fn events(&self) -> Vec<RawFd> {
        self.0.iter().map(AsRawFd::as_raw_fd).collect()
    }
}
