//! Why a kernel cannot be used.

use std::io;

/// Why a kernel cannot be used. The path is in the error around this one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not open.
    #[error("Cannot open it")]
    Open(#[source] io::Error),
    /// The file cannot be read.
    #[error("Cannot read it")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("It is not a kernel but {looks}")]
    NotKernel {
        /// What it looks like.
        looks: &'static str,
    },
    /// The kernel is for another kind of machine.
    #[error("It is for {found}, this machine is x86_64")]
    Architecture {
        /// The kind of machine.
        found: String,
    },
    /// The file ends before what its header promises.
    #[error("It is cut off: the {what} ends at byte {end}, the file at byte {len}")]
    Truncated {
        /// What is not whole.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        len: u64,
    },
    /// The kernel in a boot image does not decompress.
    #[error("Its {compression} payload does not decompress")]
    Payload {
        /// How it is compressed.
        compression: &'static str,
        /// What the decompressor said.
        source: io::Error,
    },
    /// The kernel in a boot image is too large to be one.
    #[error("Its payload decompresses to {size_mib} MiB, at most {limit_mib} MiB are possible")]
    PayloadSize {
        /// What it says of itself, in MiB, rounded up.
        size_mib: u32,
        /// What is possible.
        limit_mib: u32,
    },
    /// The header contradicts itself.
    #[error("It is damaged: {what}")]
    Damaged {
        /// What cannot be true.
        what: &'static str,
    },
    /// A segment cannot be where it wants to be.
    #[error("Its segment at {start:#x} with {size:#x} bytes {problem}")]
    Segment {
        /// First guest-physical address.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The entry point is not in the kernel.
    #[error("Its entry point {entry:#x} is in none of its segments")]
    EntryPoint {
        /// Guest-physical address.
        entry: u64,
    },
    /// The kernel is larger than the machine.
    #[error("It does not fit: give the machine at least {needed_mib} MiB of memory")]
    Memory {
        /// RAM in MiB with which it would fit.
        needed_mib: u64,
    },
}
