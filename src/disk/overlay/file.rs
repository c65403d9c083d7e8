//! The file of an overlay.
//!
//! ```text
//! 0                            size, rounded up to 4096          + 4096 per 64 MiB of disk    end
//! ├─ blocks, where the disk has them (sparse) ─┼─ map: 2 bits per block (sparse) ─┼─ footer ─┤
//!
//! map     little-endian 64-bit words, lowest bits first: 0 in the base, 1 in this file, 2 zeroes, 3 is an error
//! footer  0  magic "rvmm overlay\0\0\0\0"    16  version, u32 = 1    20  flags, u32: bit 0 sealed
//!         24 size of the disk in bytes, u64  32  zeroes
//! ```
//!
//! A page of the map is written only when the blocks that it tells about are durable, so after a crash the disk is
//! as it was at some moment after the last flush that the guest saw, like any disk with a cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::map::{BLOCK, Map, PAGE, Words};
use crate::disk::Error;
use crate::sys::file::{self as sys, Lock, next_data};

const MAGIC: [u8; 16] = *b"rvmm overlay\0\0\0\0";
const VERSION: u32 = 1;
const SEALED: u32 = 1;
const FOOTER: u64 = 4096;
/// Bytes of the largest disk, whose map takes 128 MiB when nothing is in it.
const LARGEST: u64 = 1 << 50;

/// Where the parts of the file are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Size of the disk in bytes.
    pub size: u64,
}

impl Layout {
    /// Blocks of the disk; the last may be shorter than the others.
    pub fn blocks(self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Where a page of the map is.
    pub fn page(self, index: u64) -> u64 {
        self.blocks() * BLOCK + index * PAGE
    }

    fn footer(self) -> u64 {
        self.page(Map::page_count(self.blocks()))
    }

    /// Makes an empty file an overlay in which every block is in the base.
    pub fn format(self, file: &File) -> io::Result<()> {
        file.set_len(self.footer() + FOOTER)?;
        self.write_footer(file, false)
    }

    /// Writes the footer.
    pub fn write_footer(self, file: &File, sealed: bool) -> io::Result<()> {
        let mut footer = [0; FOOTER as usize];
        footer[..16].copy_from_slice(&MAGIC);
        footer[16..20].copy_from_slice(&VERSION.to_le_bytes());
        footer[20..24].copy_from_slice(&if sealed { SEALED } else { 0 }.to_le_bytes());
        footer[24..32].copy_from_slice(&self.size.to_le_bytes());
        file.write_all_at(&footer, self.footer())
    }

    /// Writes pages of the map.
    pub fn write_pages(self, file: &File, pages: &[(u64, Box<Words>)]) -> io::Result<()> {
        pages.iter().try_for_each(|(index, words)| file.write_all_at(&bytes(words), self.page(*index)))
    }
}

/// Lets other machines open a file that this one holds, all for reading.
pub fn share(file: &File) {
    // Where files cannot be locked there is nothing to let go of.
    if let Err(error) = sys::lock(file, Lock::Shared) {
        log::debug!("a layer stays locked: {error}");
    }
}

/// A page of the map as it is in the file.
pub fn bytes(words: &Words) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Reads the footer and the map; returns where things are, the map, and whether the overlay is sealed.
pub fn load(file: &File, path: &Path) -> Result<(Layout, Map, bool), Error> {
    let failed = |source| Error::Io { action: "read overlay", path: path.into(), source };
    let invalid = |reason: &str| Error::Overlay { path: path.into(), reason: reason.into() };
    let len = file.metadata().map_err(failed)?.len();
    let mut footer = [0; 32];
    let start = len.checked_sub(FOOTER).ok_or_else(|| invalid("it is too short"))?;
    file.read_exact_at(&mut footer, start).map_err(failed)?;
    let word = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    if footer[..16] != MAGIC {
        return Err(invalid("it does not end as one"));
    }
    if word(16) != VERSION {
        return Err(invalid(&format!("it has version {}, this rvmm knows {VERSION}", word(16))));
    }
    if word(20) & !SEALED != 0 {
        return Err(invalid(&format!("it has unknown flags {:#x}", word(20))));
    }
    let layout = Layout { size: u64::from(word(28)) << 32 | u64::from(word(24)) };
    // Compared with what the file can hold before anything is computed from it.
    if layout.size > len || layout.footer() != start {
        return Err(invalid("its size is not that of its disk"));
    }
    if layout.size > LARGEST {
        return Err(invalid("its disk is larger than any"));
    }
    let mut map = Map::new(layout.blocks());
    let mut at = layout.page(0);
    while let Some(data) = next_data(file, at).map_err(failed)?.filter(|&data| data < start) {
        let index = (data - layout.page(0)) / PAGE;
        let mut page = [0; PAGE as usize];
        file.read_exact_at(&mut page, layout.page(index)).map_err(failed)?;
        let mut words = [0; (PAGE / 8) as usize];
        for (word, bytes) in words.iter_mut().zip(page.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if !map.load(index, words) {
            return Err(invalid("its map is damaged"));
        }
        at = layout.page(index + 1);
    }
    Ok((layout, map, word(20) & SEALED != 0))
}

/// A file without a name in `directory`, which is gone when it is closed.
pub fn nameless(directory: &Path) -> io::Result<File> {
    let open = |path: &Path, flags| {
        File::options()
            .read(true)
            .write(true)
            .create_new(flags == 0)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    match open(directory, libc::O_TMPFILE) {
        // Some file systems cannot do it: a name for a moment, then.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) =>
        {
            let path = directory.join(format!(".rvmm-overlay-{}-{:p}", std::process::id(), &error));
            let file = open(&path, 0)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}
