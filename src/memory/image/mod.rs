//! Memory images: guest RAM in files, one for a whole memory, one more for each difference.
//!
//! ```text
//!  memory         sparse file as long as RAM; a page stands at its RAM offset, holes have no meaning of their own
//!  memory.index   which pages the file holds, which are zero in this image, and a digest of each 2 MiB of them
//!  memory.used    which pages a machine used soon after it was restored, if one was (used.rs)
//!
//!  top    ─ index ─►  D . . Z D .      D data here, Z zero here, . as below
//!  parent ─ index ─►  D D . D . .
//!                     ───────────
//!  the guest sees     D D . Z D .      . below the last image is zero
//! ```
//!
//! RAM offset: RAM regions one after the other without the hole. Files are written once and never changed, but for memory.used, which may be absent or wrong.

mod index;
mod lazy;
mod map;
mod serve;
mod used;
mod write;

use std::io;
use std::path::PathBuf;

pub use index::{Index, Kind, Run};
pub use lazy::{Filled, Lazy};
pub use map::{Chain, Mode, Origin};
pub use serve::{Source, serve};
pub use used::{USED_FILE, WorkingSet};
pub use write::{Progress, Written, fold, write};

/// File with the pages, in the directory of an image.
pub const PAGES_FILE: &str = "memory";
/// File with the index.
pub const INDEX_FILE: &str = "memory.index";

/// Why an image could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file does not open, read or write.
    #[error("Cannot {doing} {path}")]
    File {
        /// A verb: open, read, write.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The index is cut off, changed, or of another format.
    #[error("Memory index {path} is damaged: {reason}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The index is of a later format.
    #[error("Memory index {path} has format {found}, this rvmm knows {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Format found.
        found: u32,
        /// Format known.
        known: u32,
    },
    /// The images of a chain are of different memories.
    #[error("Memory image {path} has {found} bytes of RAM, not {wanted}")]
    Size {
        /// The image.
        path: PathBuf,
        /// Bytes of RAM in it.
        found: u64,
        /// Bytes of RAM in the machine.
        wanted: u64,
    },
    /// The pages are not those that were written.
    #[error("Memory image {path} is damaged at offset {offset:#x}")]
    Pages {
        /// The image.
        path: PathBuf,
        /// RAM offset of the 2 MiB in which the damage is.
        offset: u64,
    },
    /// This host does not let pages be filled when they are touched.
    #[error("Cannot fill memory when it is touched (userfaultfd; `rvmm doctor` says who may)")]
    Userfaultfd(#[source] io::Error),
    /// The copy of the machine's memory cannot be read.
    #[error("Cannot read the machine's memory")]
    Memory(#[source] io::Error),
    /// The guest's memory cannot be mapped.
    #[error(transparent)]
    Map(#[from] super::Error),
}

fn file(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { doing, path: path.into(), source }
}
