//! Machines that are saved, restored and cloned, with the bare-metal guest (guest/bare) on this host's KVM.

#[path = "../common/mod.rs"]
mod common;

mod bound;
mod clone;
mod counter;
mod disk;
mod generations;
mod golden;
mod hostile;
mod killed;
mod lazy;
mod rebase;
mod refused;
mod registers;
mod replaced;
mod swapped;
mod time;
mod used;
mod world;
mod written;
