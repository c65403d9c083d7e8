//! Tar archives: read from strangers, written the same every time (POSIX.1-2017, pax: ustar and pax interchange formats).

mod acl;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Archive, Found, is_header};
pub use write::{Entry, end};

/// What an entry is: the byte in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File = b'0' as isize,
    /// Another name for an entry before.
    HardLink = b'1' as isize,
    /// A symbolic link.
    Symlink = b'2' as isize,
    /// A character device.
    Character = b'3' as isize,
    /// A block device.
    Block = b'4' as isize,
    /// A directory.
    Directory = b'5' as isize,
    /// A named pipe.
    Fifo = b'6' as isize,
}
