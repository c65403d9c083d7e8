//! A link that leads nowhere, as a cable that is not plugged in: nothing arrives, and what is sent is lost.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::{Link, Offloads, Received};
use crate::memory::Buffers;
use crate::sys::event::event;

/// The link; its descriptor never fires.
pub struct Unplugged(EventFd);

impl Unplugged {
    /// # Errors
    /// When the process has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Unplugged(event()?))
    }
}

impl Link for Unplugged {
    fn is_up(&self) -> bool {
        false
    }

    /// Whatever the guest does with frames is right.
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn mtu(&self) -> u16 {
        u16::MAX
    }

    fn start(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn event(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn room(&mut self) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn receive(&mut self, _: &Buffers) -> io::Result<Received> {
        Ok(Received::Nothing)
    }

    fn send(&mut self, _: &Buffers) -> io::Result<bool> {
        Ok(true)
    }
}
