//! Host facilities: what the standard library does not wrap.

pub mod clock;
pub mod digest;
pub mod directory;
pub mod file;
pub mod frozen;
pub mod host;
pub mod process;
pub mod random;
pub mod release;
pub mod signals;
pub mod slab;
pub mod socket;
pub mod tap;
pub mod terminal;
pub mod uring;
pub mod user;
pub mod userfaultfd;
pub mod xattr;
