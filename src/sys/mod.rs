//! Host facilities: what the standard library does not wrap.

pub mod file;
pub mod signals;
pub mod terminal;
