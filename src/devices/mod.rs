//! What the guest sees: its devices. They know an interrupt line, guest memory, a disk or a link, and never KVM.
//!
//! Devices of the platform stand here, one file each, and are put in their place by `vmm/platform.rs`;
//! virtio devices stand in [`virtio`], with their list.

pub mod boot_timer;
pub mod debug_console;
pub mod exit_status;
pub mod ged;
mod last_words;
pub mod pci_address;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod virtio;
pub mod vmclock;
pub mod vmgenid;
