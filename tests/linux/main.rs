//! Machines with Linux: stock kernels of a distribution, in the lab (guest/test-linux) where KVM has no hardware behind it.

#[path = "../common/mod.rs"]
mod common;

mod console;
mod containers;
mod disks;
mod ends;
mod images;
mod kernels;
mod networks;
#[allow(dead_code)]
#[path = "../snapshot/world.rs"]
mod scene;
mod server;
mod snapshots;
mod time;
