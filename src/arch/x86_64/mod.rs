//! x86_64: where everything is, how a CPU starts, what firmware would have left in memory.
//!
//! ```text
//!  Kernel::open ─► Kernel ─┐
//!  Initrd::open ─► Initrd ─┼─► boot::load(memory) ─► Start ─► sregs, regs, fpu of the boot CPU
//!  cmdline, acpi::Config ──┘
//!  cpuid::filter ─► CPUID of one vCPU          msr::boot ─► MSRs of every vCPU
//! ```

pub mod acpi;
pub mod boot;
mod boot_params;
pub mod cpuid;
mod initrd;
pub mod kernel;
pub mod layout;
mod memory_map;
pub mod msr;
mod page_tables;
mod pvh;
pub mod registers;

pub use initrd::Initrd;

use std::io;
use std::path::PathBuf;

/// Why a guest cannot be prepared for its start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be used.
    #[error("Cannot boot kernel {path:?}")]
    Kernel {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        source: kernel::Error,
    },
    /// The initial RAM disk cannot be read.
    #[error("Cannot read initial RAM disk {path:?}")]
    Initrd {
        /// Where it is.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error(
        "Initial RAM disk of {size_mib} MiB does not fit: give the machine at least {needed_mib} MiB of memory"
    )]
    InitrdSize {
        /// Its size in MiB, rounded up.
        size_mib: u64,
        /// RAM in MiB with which it would fit.
        needed_mib: u64,
    },
    /// The initial RAM disk is larger than the space that the kernel allows for it.
    #[error(
        "Initial RAM disk of {size_mib} MiB does not fit between the kernel and {limit:#x}, the kernel's limit"
    )]
    InitrdLimit {
        /// Its size in MiB, rounded up.
        size_mib: u64,
        /// First address that it must not reach.
        limit: u64,
    },
    /// The command line is longer than the kernel reads.
    #[error("Kernel command line has {length} bytes, and the kernel reads {limit}: shorten it")]
    CmdlineLength {
        /// Its length in bytes.
        length: usize,
        /// How many bytes fit, without the final zero.
        limit: usize,
    },
    /// The command line has a character that a kernel cannot take.
    #[error(
        "Kernel command line has the character {character:?} at byte {offset}: only printable ASCII is possible"
    )]
    CmdlineCharacter {
        /// The character.
        character: char,
        /// Its offset in bytes.
        offset: usize,
    },
    /// No CPU feature has this name.
    #[error("Unknown CPU feature {name:?}, the nearest that is known is {nearest:?}")]
    CpuFeature {
        /// What was given.
        name: String,
        /// The name that is most like it.
        nearest: &'static str,
    },
    /// So many CPUs that their description is longer than its place.
    #[error("ACPI tables have {size} bytes, at most {limit} fit")]
    AcpiSize {
        /// Their size in bytes.
        size: usize,
        /// How many bytes fit.
        limit: usize,
    },
    /// The machine has too little RAM for even the boot structures.
    #[error("Cannot write the {what} at {address:#x}: the machine has too little memory")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Its guest-physical address.
        address: u64,
        /// What guest memory said.
        source: vm_memory::GuestMemoryError,
    },
}
