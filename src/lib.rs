//! rvmm: a lightweight virtual machine monitor on KVM.
//!
//! Modules stand on floors; a module uses only modules on a lower floor (`tests/floors.rs` checks it).
//!
//! ```text
//! floor 6   cli                          what people talk to
//! floor 5   api                          what programs talk to
//! floor 4   vmm                          one machine: build, run, save
//! floor 3   kvm  config                  the kernel's interface; what was asked for
//! floor 2   devices  arch  image         what the guest sees; what it is made from
//! floor 1   memory  bus  irq  notice  options  console  disk  net  snapshot  agent
//! floor 0   sys                          host facilities
//! ```
#![warn(missing_docs)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod agent;
pub mod api;
pub mod arch;
pub mod bus;
pub mod cli;
pub mod config;
pub mod console;
pub mod devices;
pub mod disk;
pub mod image;
pub mod irq;
pub mod kvm;
pub mod memory;
pub mod net;
pub mod notice;
pub mod options;
pub mod snapshot;
pub mod sys;
pub mod vmm;

#[cfg(test)]
mod testing;
