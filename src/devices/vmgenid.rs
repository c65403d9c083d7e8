//! Virtual machine generation identifier (Microsoft's "Virtual Machine Generation ID", ACPI device of QEMU
//! docs/specs/vmgenid.rst): 16 random bytes that change whenever the guest goes on from a saved state, so that it
//! makes itself new random numbers.

use std::io;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::sys::random;

/// Writes a new identifier into its place in guest memory. The guest is told through the event device.
pub fn renew(memory: &Memory, address: GuestAddress) -> io::Result<()> {
    let mut id = [0; 16];
    random::fill(&mut id)?;
    memory.write_slice(&id, address).map_err(io::Error::other)
}
