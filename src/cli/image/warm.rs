//! Machines that go on from a warm image: with its memory and state, over its layers.

use crate::cli::output::Failure;
use crate::cli::store;
use crate::config::VmConfig;
use crate::devices::virtio::block;
use crate::image::{Descriptor, Store};
use crate::memory::image::Mode;
use crate::vmm::snapshot::Restore;

/// Opens what was saved, for a machine that gets its memory in this way; `None` if the image is not warm. A lease keeps it.
pub fn open(store: &Store, image: &Descriptor, mode: Mode) -> Result<Option<Restore>, Failure> {
    let bundle = store.open_warm(image, store::LIMIT).map_err(Failure::usage)?;
    bundle.map(|bundle| Restore::open_on(&bundle, mode, &[])).transpose().map_err(Failure::usage)
}

/// The machine that was committed, as its guest sees it; disk and kernel are those that it gets here.
pub fn machine(warm: &Restore, base: VmConfig) -> Result<VmConfig, Failure> {
    let mut config = warm.config().as_guest_sees();
    let drives = &mut config.devices.block;
    if drives.len() != base.devices.block.len() {
        return Err(Failure::usage(
            "The machine that was committed had disks that are not in the image: boot it with `rvmm run --cold`",
        ));
    }
    for (drive, disk) in drives.iter_mut().zip(base.devices.block) {
        let (serial, cache_type) = (drive.serial.take(), drive.cache_type);
        *drive = block::Config { serial, cache_type, source: block::Source::Replacement, ..disk };
    }
    config.boot_source.kernel_image_path = base.boot_source.kernel_image_path;
    config.boot_source.initrd_path = base.boot_source.initrd_path;
    Ok(config)
}
