//! Host facilities: what the standard library does not wrap.

pub mod clock;
pub mod digest;
pub mod directory;
pub mod event;
pub mod file;
pub mod frozen;
pub mod host;
pub mod pagemap;
pub mod poll;
pub mod process;
pub mod program;
pub mod random;
pub mod ranges;
pub mod release;
pub mod scratch;
pub mod signals;
pub mod slab;
pub mod socket;
pub mod tap;
pub mod terminal;
pub mod uring;
pub mod user;
pub mod userfaultfd;
pub mod xattr;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. What is behind it is used as it is, also after a panic of whoever had it: that ends the program, and until then
/// guests keep their devices.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with all that led to it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
