//! Folding a chain of snapshots: a bundle that stands for itself, or on another base, in the place of one that stood on its
//! parents.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::snapshot::LoadError;
use crate::memory::image::{self, INDEX_FILE, Progress, Written};
use crate::snapshot::bundle::{self, Bundle, Draft};
use crate::sys::file;

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LoadError {
    move |source| bundle::Error::File { doing, path: path.into(), source }.into()
}

fn plain(path: &Path) -> Result<PathBuf, LoadError> {
    path.canonicalize().map_err(failed("find", path))
}

/// Rewrites the bundle at `path` so that it stands for itself, or on the one at `onto`. What it describes stays the same, so that
/// bundles and machines that stand on it still do. It is checked first: damage is not carried over. It can be killed at any
/// instant: what is at `path` is the old one or the new one.
pub fn rebase(path: &Path, onto: Option<&Path>, progress: Progress) -> Result<Written, LoadError> {
    let path = plain(path)?;
    let bundle = Bundle::open(&path)?;
    let open = |onto: &Path| {
        let base = Bundle::open(&plain(onto)?)?;
        let memory = base.memory(&[], true)?;
        for directory in memory.directories() {
            if plain(directory)? == path {
                return Err(bundle::Error::Loop { path: path.clone(), base: base.path().into() }.into());
            }
        }
        Ok::<_, LoadError>((base, memory))
    };
    let base = onto.map(open).transpose()?;
    // It may be what the bundle stands on already, and have moved.
    let others: Vec<Bundle> = base.iter().map(|(base, _)| base.clone()).collect();
    let chain = bundle.memory(&others, true)?;
    let (mut checked, all) = (0, chain.ram());
    chain.verify(|bytes| {
        checked += bytes;
        progress(checked.min(all) / 2, all);
    })?;
    for layer in bundle.verify_disks(|_| {})? {
        let path = path.join(layer);
        log::warn!("{} goes along unchecked: an earlier rvmm wrote no digest of it", path.display());
    }
    let mut draft = Draft::replacing(&bundle)?;
    for name in bundle.manifest().files.keys().filter(|name| *name != INDEX_FILE) {
        draft.add(name, &bundle.read(name)?)?;
    }
    for layer in bundle.manifest().disks.iter().flat_map(|disk| &disk.layers) {
        let (from, to) = (path.join(layer), draft.path().join(layer));
        let layer = bundle.directory().file(&layer.to_string_lossy()).map_err(failed("open", &from))?;
        if file::link(&layer, &to).is_err() {
            let copy = File::options().write(true).create_new(true).mode(0o600).open(&to);
            let copied = copy.and_then(|copy| file::copy(&layer, &copy).and_then(|()| copy.sync_all()));
            copied.map_err(failed("write", &to))?;
        }
    }
    let parent = base.as_ref().map(|(base, _)| base.as_parent_of(&path));
    let base = base.map(|(_, memory)| memory);
    let written = image::fold(&chain, base.as_ref(), draft.path(), &mut |done, all| {
        progress((all + done) / 2, all);
    })?;
    draft.add(INDEX_FILE, &written.index)?;
    draft.replace(parent, &bundle)?;
    Ok(written)
}
