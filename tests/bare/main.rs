//! Machines with the bare-metal guest (guest/bare) on this host's KVM, with or without hardware behind it.

#[path = "../common/mod.rs"]
mod common;

mod config;
mod console;
mod devices;
mod ends;
mod input;
mod processor;
