//! Kernels that were decompressed before.
//!
//! ```text
//!  <directory>/<digest of the payload>.elf      ELF │ b"rvmmelf1" │ length of ELF, u64 │ BLAKE3 of ELF
//!  <directory>/<device>-<inode>.index           one line of numbers and the digest, see `Index`
//! ```
//!
//! Files are written beside, synced and renamed, so a file is whole or absent. An index line holds what `stat` says of
//! the boot image and of the decompressed file: while neither changed, nothing is read or hashed to find the ELF.
//! When one did, the digests decide. Whatever does not fit is as good as absent.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use blake3::Hash;

use super::source::Source;

const MAGIC: &[u8; 8] = b"rvmmelf1";
const TRAILER: usize = 48;
/// How many decompressed kernels are kept.
const KEEP: usize = 8;
/// A temporary file of this age belongs to nobody any more.
const STALE: Duration = Duration::from_secs(3600);
/// A file that changed so recently could change again without a new time stamp.
const SETTLED: Duration = Duration::from_millis(50);

/// A directory of decompressed kernels, for one boot image.
pub struct Cache {
    directory: PathBuf,
    image: Metadata,
    /// It was looked at so late after its last change that another one would show.
    settled: bool,
}

/// What `stat` says of a file: enough to see that it is the same and did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// One line of the index: a boot image and the file that holds its ELF, as they were.
struct Index {
    image: Identity,
    digest: Hash,
    elf: Identity,
}

impl Cache {
    /// The cache in `directory`, which is created for its user alone if it is not there, for the boot image of which
    /// `stat` says `image`.
    pub fn open(directory: &Path, image: Metadata) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(image.ctime().max(0) as u64, image.ctime_nsec() as u32);
        let settled = now.saturating_sub(changed) >= SETTLED;
        Ok(Cache { directory: directory.into(), image, settled })
    }

    /// The ELF of the boot image if it was seen before and neither has changed since.
    pub fn recall(&self) -> Option<Source> {
        let image = Identity::of(&self.image);
        let index = Index::parse(&fs::read_to_string(self.index_path(&image)).ok()?)?;
        if index.image != image {
            return None;
        }
        let file = File::open(self.elf_path(&index.digest)).ok()?;
        let metadata = file.metadata().ok()?;
        (Identity::of(&metadata) == index.elf).then_some(())?;
        let (length, _) = trailer(&file, metadata.len())?;
        Some(Source::File(Mutex::new(file), length))
    }

    /// The ELF of a payload by its digest, once its own digest has been checked.
    pub fn find(&self, digest: &Hash) -> Option<Source> {
        let file = File::open(self.elf_path(digest)).ok()?;
        let metadata = file.metadata().ok()?;
        let (length, expected) = trailer(&file, metadata.len())?;
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut io::Read::take(&file, length), &mut hasher).ok()?;
        (hasher.finalize() == expected).then_some(())?;
        self.remember(digest, &metadata);
        Some(Source::File(Mutex::new(file), length))
    }

    /// Keeps an ELF for the next time.
    pub fn store(&self, digest: &Hash, elf: &[u8]) -> io::Result<Source> {
        self.prune();
        let trailer = [&MAGIC[..], &(elf.len() as u64).to_le_bytes(), blake3::hash(elf).as_bytes()].concat();
        let file = self.write(&self.elf_path(digest), &[elf, &trailer])?;
        self.remember(digest, &file.metadata()?);
        Ok(Source::File(Mutex::new(file), elf.len() as u64))
    }

    /// Writes an index line. Without it the next start takes longer, and nothing else.
    fn remember(&self, digest: &Hash, elf: &Metadata) {
        if !self.settled {
            return;
        }
        let index = Index { image: Identity::of(&self.image), digest: *digest, elf: Identity::of(elf) };
        if let Err(error) = self.write(&self.index_path(&index.image), &[index.line().as_bytes()]) {
            log::debug!("Cannot write the index of the kernel cache: {error}");
        }
    }

    /// Writes a file beside its place, syncs it and puts it there.
    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}.tmp", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = self.directory.join(name);
        let put = || {
            let mut file =
                File::options().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            Ok(file)
        };
        put().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Makes room for one more ELF and removes what crashes left behind.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut elves = Vec::new();
        for entry in entries.flatten() {
            let (path, age) = (entry.path(), entry.metadata().and_then(|metadata| metadata.modified()));
            let Ok(modified) = age else { continue };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("elf") => elves.push((modified, path)),
                Some("tmp") if modified.elapsed().is_ok_and(|age| age > STALE) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        elves.sort();
        let surplus = (elves.len() + 1).saturating_sub(KEEP);
        elves.iter().take(surplus).for_each(|(_, path)| drop(fs::remove_file(path)));
    }

    fn elf_path(&self, digest: &Hash) -> PathBuf {
        self.directory.join(format!("{digest}.elf"))
    }

    fn index_path(&self, image: &Identity) -> PathBuf {
        self.directory.join(format!("{:x}-{:x}.index", image.device, image.inode))
    }
}

/// Length and digest of the ELF in a file of `size` bytes.
fn trailer(file: &File, size: u64) -> Option<(u64, Hash)> {
    let length = size.checked_sub(TRAILER as u64)?;
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, length).ok()?;
    let (magic, rest) = trailer.split_first_chunk::<8>()?;
    let (promised, digest) = rest.split_first_chunk::<8>()?;
    let whole = magic == MAGIC && u64::from_le_bytes(*promised) == length;
    whole.then_some((length, Hash::from_bytes(digest.try_into().ok()?)))
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn line(&self) -> String {
        let ((seconds, nanoseconds), (changed, changed_ns)) = (self.modified, self.changed);
        let Identity { device, inode, size, .. } = self;
        format!("{device} {inode} {size} {seconds} {nanoseconds} {changed} {changed_ns}")
    }

    fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut unsigned = || words.next()?.parse::<u64>().ok();
        let (device, inode, size) = (unsigned()?, unsigned()?, unsigned()?);
        let mut signed = || words.next()?.parse::<i64>().ok();
        let (modified, changed) = ((signed()?, signed()?), (signed()?, signed()?));
        Some(Identity { device, inode, size, modified, changed })
    }
}

impl Index {
    fn line(&self) -> String {
        format!("1 {} {} {}\n", self.image.line(), self.digest, self.elf.line())
    }

    /// Reads a line of version 1; a last word that was cut short has no line feed behind it.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        (words.next()? == "1").then_some(())?;
        let image = Identity::parse(&mut words)?;
        let digest = Hash::from_hex(words.next()?).ok()?;
        let elf = Identity::parse(&mut words)?;
        words.next().is_none().then_some(Index { image, digest, elf })
    }
}

#[cfg(test)]
mod tests;
