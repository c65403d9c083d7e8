//! Images of virtual machines: stored, layered, versioned and moved as those of containers. Nothing here runs a machine.
//!
//! ```text
//!   name ──index.json──► manifest ──┬─► config: machine, process, disk size, history
//!                           │       ├─► kernel, initramfs
//!                     its parent    ├─► disk layers, bottom first: qcow2 ──unpack──► cache: raw + extents ─► disk::Layers
//!                                   └─► warm images: memory layers, state
//! ```

mod archive;
mod cache;
mod commit;
mod compare;
mod compression;
mod config;
mod digest;
mod error;
mod export;
pub mod ext4;
pub mod import;
pub mod initramfs;
mod instance;
pub mod kernel;
pub mod layer;
mod list;
mod manifest;
mod name;
mod overlays;
mod qcow2;
#[cfg(feature = "registry")]
pub mod registry;
mod store;
pub(crate) mod tar;
#[cfg(test)]
mod tests;
pub mod time;
mod versions;
mod view;
mod warm;

use store::{gc, lease, refs};

pub use cache::Unpacked;
pub use commit::{Change, Commit};
pub use compare::{Fate, FileChange};
pub use config::{Config, Disk, MAX_DISK, Machine, Process, Version};
pub use digest::{Digest, Hasher};
pub use error::Error;
pub use instance::{Instance, InstanceLock, Record};
pub use kernel::Kernel;
pub use list::{Difference, Image, Inspected};
pub use manifest::{
    CONFIG, DISK_LAYER, Descriptor, IMAGE, INITRAMFS, KERNEL, MANIFEST, MEMORY_INDEX, MEMORY_LAYER, Manifest,
    STATE,
};
pub use name::Name;
pub use store::{Collected, Index, Lease, Progress, Step, Store, Upload};
pub use time::{parse_rfc3339, rfc3339};
pub use view::{ReadAt, View};
