//! Host facilities: what the standard library does not wrap.

pub mod file;
pub mod process;
pub mod random;
pub mod signals;
pub mod socket;
pub mod tap;
pub mod terminal;
pub mod uring;
