//! The parts of the agent that need no operating system: they are tested where it is built.

#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

extern crate alloc;

pub mod accounts;
pub mod container;
pub mod dhcp;
pub mod hex;
pub mod json;
pub mod mounts;
pub mod net;
pub mod signal;
