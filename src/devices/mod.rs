//! What the guest sees: its devices. They know an interrupt line, guest memory, a disk or a link, and never KVM.

pub mod virtio;
