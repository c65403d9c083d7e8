//! The store of images that commands work with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;

use super::output::Failure;
use super::progress::Bar;
use super::{Common, variable};
use crate::image::{DISK_LAYER, Descriptor, Error, Store};
use crate::sys::chain;

/// Where images are kept: as the user says, else where the XDG base directory specification has data.
pub(super) fn place(common: &Common) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let data =
        || absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    common.store.clone().or_else(|| variable("RVMM_STORE")).or_else(|| Some(data()?.join("rvmm")))
}

/// Opens the store, which is made when it is not there.
pub fn open(common: &Common) -> Result<Store, Failure> {
    let place = place(common).ok_or_else(|| {
        Failure::usage("There is no place for images: say --store DIR, or set RVMM_STORE or HOME")
    })?;
    at(&place, common)
}

/// Opens the store at a place that is known.
pub fn at(place: &Path, common: &Common) -> Result<Store, Failure> {
    if place.to_str().is_none() {
        // What machines and snapshots say of it is JSON.
        return Err(Failure::usage(format!("The store {} has a name that is not UTF-8", place.display())));
    }
    let store = Store::open(place).map_err(Failure::refused)?;
    Ok(match Bar::new(common) {
        Some(bar) => store.with_progress(Arc::new(move |step| bar.show(&step))),
        None => store,
    })
}

/// Whether there is a store at a place.
pub fn is_at(place: &Path) -> bool {
    Store::is_at(place)
}

/// Opens the store if there is one.
pub fn existing(common: &Common) -> Result<Option<Store>, Failure> {
    match place(common).is_some_and(|place| is_at(&place)) {
        true => open(common).map(Some),
        false => Ok(None),
    }
}

/// Unpacks what has come into the store, so that the first machine of the image starts as quickly as all others. If that fails it is
/// said, and tried again when it is needed.
pub fn unpack(store: &Store, image: &Descriptor) {
    let unpack = || -> Result<(), Error> {
        if store.manifest(image)?.of_type(DISK_LAYER).next().is_some() {
            store.unpack(image, LIMIT)?;
        }
        store.open_warm(image, LIMIT).map(drop)
    };
    if let Err(error) = unpack() {
        warn!("the image is there and not unpacked yet: {}", chain(&error));
    }
}

/// The most bytes that a layer may unpack to: a disk that is larger than this has not all of it in one layer.
pub const LIMIT: u64 = 1 << 40;
