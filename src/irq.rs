//! One interrupt line from a device to the guest: an eventfd that KVM turns into an interrupt (irqfd).

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::sys::event::event;

/// An edge-triggered interrupt line. Devices pull it; whoever builds the machine connects it.
#[derive(Debug)]
pub struct Irq(EventFd);

impl Irq {
    /// A line that is not connected yet: pulls are remembered until it is.
    pub fn new() -> io::Result<Self> {
        event().map(Irq)
    }

    /// A second handle on the same line.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Irq)
    }

    /// Raises one edge. It cannot fail: a full counter already holds an edge.
    pub fn trigger(&self) {
        let _ = self.0.write(1);
    }

    /// The descriptor to hand to KVM.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl vm_superio::Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Irq::trigger(self);
        Ok(())
    }
}
