//! Images by the command line: with real archives and layouts, qemu-img and e2fsck as judges, and machines of the bare-metal guest.

#[path = "../common/mod.rs"]
mod common;

mod clones;
mod commits;
mod damage;
mod formats;
mod hostile;
mod kernels;
mod machines;
mod names;
mod saved;
mod world;
