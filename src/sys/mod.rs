//! Host facilities: what the standard library does not wrap.

pub mod process;
pub mod random;
pub mod tap;
