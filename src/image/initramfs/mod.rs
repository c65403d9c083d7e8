//! Initial RAM disks: our init, and the modules of a kernel that its devices and file systems need.
//!
//! ```text
//!   /init                 guest/agent, which this program carries
//!   /dev/console
//!   /rvmm/modules         lines "CONDITION FILE...", read by guest/agent/src/init/modules.rs
//!   /rvmm/modules.late
//!   /rvmm/NAME.ko
//!   /rvmm/process.json    what is to be run: an archive of its own behind the other, made for each machine
//! ```
//!
//! The same kernel makes the same bytes.

mod cpio;
mod modules;

use super::Error;
use cpio::Archive;

pub use modules::Modules;

/// The init: static, without a C library.
const INIT: &[u8] = include_bytes!(env!("RVMM_AGENT"));

/// Drivers, by the condition on which they are loaded.
type Drivers = [(&'static str, &'static [&'static str])];

/// Before the command runs.
const FIRST: &Drivers = &[
    ("always", &["virtio_mmio"]),
    ("virtio:0x0002", &["virtio_blk"]),
    ("fs:ext4", &["crc32c_generic", "ext4"]),
    ("virtio:0x0004", &["virtio_rng"]),
    ("virtio:0x0001", &["af_packet", "virtio_net"]),
    ("acpi:PNP0C0C", &["evdev", "button"]),
    ("acpi:QEMU0001", &["pvpanic_mmio"]),
];

/// While the command runs.
const LATE: &Drivers = &[
    ("virtio:0x0013", &["vmw_vsock_virtio_transport"]),
    ("virtio:0x0005", &["virtio_balloon"]),
    ("always", &["overlay"]),
];

/// Without these no image runs.
const NEEDED: [&str; 3] = ["virtio_mmio", "virtio_blk", "ext4"];

/// An initial RAM disk.
pub struct Initramfs {
    /// The archive.
    pub bytes: Vec<u8>,
    /// The modules in it, in the order in which they are loaded if all are.
    pub modules: Vec<String>,
    /// What images need and neither the kernel nor its modules have, as far as that is known.
    pub missing: Vec<&'static str>,
}

/// Makes the initial RAM disk for a kernel with these modules, or with none.
///
/// # Errors
/// When a module is damaged, of another kernel, or cannot be read.
pub fn build(modules: Option<&Modules>) -> Result<Initramfs, Error> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.directory("rvmm");
    archive.file("init", 0o755, INIT);
    let mut all = Vec::new();
    for (list, drivers) in [("rvmm/modules", FIRST), ("rvmm/modules.late", LATE)] {
        let mut lines = String::new();
        for (condition, names) in drivers.iter().filter(|_| modules.is_some()) {
            let needed = modules.map_or(Ok(Vec::new()), |modules| modules.with_dependencies(names))?;
            if needed.is_empty() {
                continue;
            }
            lines.push_str(condition);
            for module in needed {
                let file = format!("{}.ko", module.name);
                lines.push_str(&format!(" {file}"));
                if !all.contains(&module.name) {
                    archive.file(&format!("rvmm/{file}"), 0o644, &module.bytes);
                    all.push(module.name);
                }
            }
            lines.push('\n');
        }
        archive.file(list, 0o644, lines.as_bytes());
    }
    let is_missing = |name: &&str| modules.is_some_and(|modules| !modules.has(name));
    let missing = NEEDED.into_iter().filter(is_missing).collect();
    Ok(Initramfs { bytes: archive.finish(), modules: all, missing })
}

/// The archive with what a machine is to run, which goes behind that of its kernel: a JSON document as guest/agent/src/container.rs describes it.
pub fn process(document: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("rvmm/process.json", 0o600, document);
    archive.finish()
}

#[cfg(test)]
mod tests;
