//! Why a machine could not be built or run.

use std::io;

use super::{snapshot, vcpus};
use crate::devices::virtio;
use crate::{arch, bus, console, kvm, memory};

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// A vCPU thread.
    #[error(transparent)]
    Vcpu(#[from] vcpus::StartError),
    /// Kernel, tables or registers.
    #[error(transparent)]
    Boot(#[from] arch::x86_64::Error),
    /// A virtio device.
    #[error(transparent)]
    Device(#[from] virtio::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// Two devices in one place: a mistake in the layout.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// More virtio devices than interrupt pins.
    #[error("{count} devices are more than the {limit} that a machine can have")]
    Devices {
        /// How many there are with those added by default.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A saved machine.
    #[error(transparent)]
    Load(#[from] snapshot::LoadError),
    /// The copy of the memory for a snapshot.
    #[error("Cannot freeze the machine's memory")]
    Fork(#[source] io::Error),
    /// A file that it is to have cannot be told in JSON.
    #[error("A file of the machine has a name or a directory that is not UTF-8: rename it")]
    Name(#[source] serde_json::Error),
    /// The machine is switched off.
    #[error("The machine is switched off")]
    Off,
    /// An event descriptor, a thread or the event loop.
    #[error("Cannot set up the event loop")]
    Loop(#[from] io::Error),
}
