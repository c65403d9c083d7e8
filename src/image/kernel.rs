//! Kernels in the store: each with its initial RAM disk, as an image without a disk (Linux Documentation/arch/x86/boot.rst, `kernel_version`).
//!
//! Their names are `rvmm/kernel:NAME`, so gc keeps them, and they are saved, pushed and pulled as all images are. The
//! name `rvmm/kernel:default` is a second one of the kernel with which images run that bring none.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::Error;
use super::commit::Commit;
use super::config::{Machine, Process};
use super::initramfs::Initramfs;
use super::manifest::{Descriptor, INITRAMFS, KERNEL, Manifest};
use super::name::Name;
use super::refs::Index;
use super::store::Store;
use crate::options::similar;
use crate::sys::chain;

/// Where kernels are, among all names.
const REPOSITORY: &str = "rvmm/kernel";

/// The second name of one of them.
const DEFAULT: &str = "default";

/// The label with the version.
const VERSION: &str = "org.opencontainers.image.version";

/// What an ELF kernel says of itself somewhere.
const BANNER: &[u8] = b"Linux version ";

/// More of an ELF kernel is not looked at for its version, in bytes.
const MAX_KERNEL: u64 = 1 << 30;

/// A kernel in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Its name among kernels.
    pub name: String,
    /// What `uname -r` will say; empty if nobody knows.
    pub version: String,
    /// What leads to its manifest; a lease on it holds all of the kernel.
    pub image: Descriptor,
    /// The kernel itself: [`Store::blob`] has its path.
    pub kernel: Descriptor,
    /// Its initial RAM disk, behind which what is to be run goes ([`super::initramfs::process`]).
    pub initramfs: Descriptor,
    /// Kernel arguments.
    pub boot_args: String,
    /// When it was added (RFC 3339).
    pub created: String,
    /// Images run with it that bring none.
    pub is_default: bool,
}

impl Kernel {
    /// Its name among all images.
    ///
    /// # Errors
    /// Never for a kernel that is in a store.
    pub fn full_name(&self) -> Result<Name, Error> {
        full(&self.name)
    }

    /// Bytes that it has in the store.
    pub fn size(&self) -> u64 {
        self.kernel.size.saturating_add(self.initramfs.size)
    }
}

/// The name that a kernel of this version gets: letters that names do not have become underscores.
pub fn name_of_version(version: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    version.trim_start_matches(['.', '-']).chars().take(128).map(plain).collect()
}

/// Whether a name of the store is that of a kernel.
pub(super) fn is_kernel(name: &str) -> bool {
    name.strip_prefix(REPOSITORY).is_some_and(|rest| rest.starts_with(':'))
}

fn full(name: &str) -> Result<Name, Error> {
    match format!("{REPOSITORY}:{name}").parse() {
        Ok(full) if !name.contains([':', '/']) => Ok(full),
        _ => {
            let reason =
                "a kernel's name is up to 128 letters, digits, _ . and -, and does not begin with . or -";
            Err(Error::BadName { name: name.into(), reason })
        }
    }
}

/// Kernels by name, without the second name of the default one.
fn named(index: &Index) -> impl Iterator<Item = (&str, &Descriptor)> {
    index.manifests.iter().filter_map(|entry| {
        let name = Index::name_of(entry)?.strip_prefix(REPOSITORY)?.strip_prefix(':')?;
        (name != DEFAULT).then_some((name, entry))
    })
}

fn default_name() -> String {
    format!("{REPOSITORY}:{DEFAULT}")
}

fn default(index: &Index) -> Option<&Descriptor> {
    index.get(&default_name())
}

fn unknown(index: &Index, name: &str) -> Error {
    let names: Vec<&str> = named(index).map(|(name, _)| name).collect();
    Error::UnknownKernel { name: name.into(), nearest: similar(name, &names).map(Into::into) }
}

/// The kernel and the initial RAM disk.
fn parts<'a>(name: &str, manifest: &'a Manifest) -> Result<[&'a Descriptor; 2], Error> {
    let part = |kind| {
        let found = manifest.of_type(kind).next();
        found.ok_or_else(|| Error::invalid(format!("Kernel `{name}`"), format!("it has no {kind}")))
    };
    Ok([part(KERNEL)?, part(INITRAMFS)?])
}

/// Images that come from somewhere get a kernel's name only if they are one, and take it from no other.
pub(super) fn check_name(
    index: &Index,
    name: &Name,
    image: &Descriptor,
    manifest: &Manifest,
) -> Result<(), Error> {
    if !is_one(name) {
        return Ok(());
    }
    let refuse = |reason| Err(Error::BadName { name: name.to_string(), reason });
    let before = index.get(&name.to_string());
    match before.is_some_and(|before| before.digest == image.digest) {
        true => Ok(()),
        false if name.tag == DEFAULT => refuse("`rvmm kernel default` says which kernel that is"),
        false if before.is_some() => refuse("a kernel has this name: `rvmm kernel rm` removes it"),
        false => parts(&name.tag, manifest).map(drop),
    }
}

/// Whether this is the second name, that of the default kernel.
pub fn is_default(name: &Name) -> bool {
    is_one(name) && name.tag == DEFAULT
}

/// Whether this is the name of a kernel.
pub(super) fn is_one(name: &Name) -> bool {
    name.repository == REPOSITORY
}

/// Whether this is a kernel whose name another one has.
pub(super) fn gives_way(index: &Index, name: &Name, image: &Descriptor, manifest: &Manifest) -> bool {
    let is_other = |before: &Descriptor| before.digest != image.digest;
    let could_be = is_one(name) && !is_default(name) && parts(&name.tag, manifest).is_ok();
    let gives_way = could_be && index.get(&name.to_string()).is_some_and(is_other);
    if gives_way {
        log::warn!("another kernel is `{}` here: it stays, and that of the archive is left out", name.tag);
    }
    gives_way
}

/// The first kernel is the default, wherever it comes from.
pub(super) fn came(index: &mut Index, name: &Name, image: &Descriptor) {
    if is_one(name) && default(index).is_none() {
        index.set(&default_name(), image);
    }
}

/// The version of the kernel in a file, a boot image or ELF, if it says so.
///
/// # Errors
/// When it cannot be read.
pub fn version(file: &File) -> io::Result<Option<String>> {
    let mut head = [0; 0x210];
    if file.read_exact_at(&mut head, 0).is_ok() && head[0x202..0x206] == *b"HdrS" {
        let offset = u64::from(u16::from_le_bytes([head[0x20e], head[0x20f]]));
        let mut text = [0; 256];
        let got = file.read_at(&mut text, offset + 0x200)?;
        return Ok(word(&text[..got]).filter(|_| offset > 0));
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    // The banner may lie across two pieces.
    let (mut file, mut kept) = (file, Vec::new());
    file.seek(SeekFrom::Start(0))?;
    let mut file = file.take(MAX_KERNEL);
    let mut piece = vec![0; 1 << 20];
    loop {
        let got = file.read(&mut piece)?;
        if got == 0 {
            return Ok(None);
        }
        kept.extend_from_slice(&piece[..got]);
        let places = kept.windows(BANNER.len()).enumerate().filter(|(_, bytes)| *bytes == BANNER);
        // The first word after the banner is a version; the text in other places is a format.
        let words = places.filter_map(|(at, _)| word(&kept[at + BANNER.len()..]));
        if let Some(version) = words.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit())) {
            return Ok(Some(version));
        }
        kept.drain(..kept.len().saturating_sub(512));
    }
}

/// The first word of a text.
fn word(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| !(0x21..0x7f).contains(byte))?;
    (end > 0).then(|| String::from_utf8_lossy(&text[..end]).into_owned())
}

impl Store {
    /// Adds a kernel, or puts it in place of the one that has its name. The first one is the default.
    ///
    /// # Errors
    /// When the name cannot be, or the host refuses.
    pub fn add_kernel(
        &self,
        name: &str,
        file: &mut File,
        version: &str,
        initramfs: &Initramfs,
        boot_args: &str,
    ) -> Result<Kernel, Error> {
        let full = full(name)?;
        if name == DEFAULT {
            let reason = "this is what `rvmm kernel default` says of another one";
            return Err(Error::BadName { name: name.into(), reason });
        }
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read what goes to", self.path()))?;
        let mut lease = self.lease()?;
        let blobs =
            [self.put_file(&mut lease, KERNEL, file)?, self.put(&mut lease, INITRAMFS, &initramfs.bytes)?];
        let labels = [(VERSION.into(), version.into())].into();
        let about = Commit {
            created_by: "rvmm kernel add",
            machine: Some(Machine { boot_args: boot_args.into(), ..Machine::default() }),
            process: Some(Process { labels, ..Process::default() }),
            blobs: &blobs,
            ..Commit::new(SystemTime::now())
        };
        let image = self.commit(&mut lease, &about, None)?;
        self.change_index(|index| {
            let before = index.get(&full.to_string()).map(|entry| entry.digest);
            index.set(&full.to_string(), &image);
            match default(index) {
                Some(default) if Some(default.digest) != before => {}
                _ => index.set(&default_name(), &image),
            }
            Ok(())
        })?;
        self.kernel(name)
    }

    /// All kernels that are whole, in the order of their names.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn kernels(&self) -> Result<Vec<Kernel>, Error> {
        let index = self.read_index()?;
        let whole = |(name, entry)| match self.read_kernel(&index, name, entry) {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                log::warn!("kernel `{name}` is left out: {}", chain(&error));
                None
            }
        };
        Ok(named(&index).filter_map(whole).collect())
    }

    fn read_kernel(&self, index: &Index, name: &str, entry: &Descriptor) -> Result<Kernel, Error> {
        let image = Descriptor::new(&entry.media_type, entry.digest, entry.size);
        let manifest = self.manifest(&image)?;
        let config = self.config(&manifest)?;
        let [kernel, initramfs] = parts(name, &manifest)?;
        Ok(Kernel {
            name: name.into(),
            version: config.config.labels.get(VERSION).cloned().unwrap_or_default(),
            kernel: kernel.clone(),
            initramfs: initramfs.clone(),
            boot_args: config.machine.boot_args,
            created: config.created,
            is_default: default(index).is_some_and(|default| default.digest == image.digest),
            image,
        })
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when a document cannot be read.
    pub fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let index = self.read_index()?;
        let found = named(&index).find(|(other, _)| *other == name);
        let (name, entry) = found.ok_or_else(|| unknown(&index, name))?;
        self.read_kernel(&index, name, entry)
    }

    /// The kernel with which images run that bring none, if there is one.
    ///
    /// # Errors
    /// When a document cannot be read.
    pub fn default_kernel(&self) -> Result<Option<Kernel>, Error> {
        let index = self.read_index()?;
        let Some(wanted) = default(&index) else { return Ok(None) };
        let found = named(&index).find(|(_, entry)| entry.digest == wanted.digest);
        found.map(|(name, entry)| self.read_kernel(&index, name, entry)).transpose()
    }

    /// Makes a kernel the default.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when the host refuses.
    pub fn set_default_kernel(&self, name: &str) -> Result<Kernel, Error> {
        self.change_index(|index| {
            let found = named(index).find(|(other, _)| *other == name);
            let (_, entry) = found.ok_or_else(|| unknown(index, name))?;
            let kernel = self.read_kernel(index, name, entry)?;
            index.set(&default_name(), &kernel.image);
            Ok(Kernel { is_default: true, ..kernel })
        })
    }

    /// Takes a kernel out; its blobs stay until `gc`. Returns the one that is the default then, which is another one if this was it.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when the host refuses.
    pub fn remove_kernel(&self, name: &str) -> Result<Option<Kernel>, Error> {
        let others = self.kernels()?.into_iter().filter(|kernel| kernel.name != name);
        // The one that came last is most likely the newest.
        let next = others.max_by(|a, b| a.created.cmp(&b.created));
        self.change_index(|index| {
            if !index.remove(&full(name)?.to_string()) {
                return Err(unknown(index, name));
            }
            let default = default(index).map(|default| default.digest);
            if named(index).any(|(_, entry)| Some(entry.digest) == default) {
                return Ok(());
            }
            index.remove(&default_name());
            if let Some(next) = next.filter(|next| named(index).any(|(name, _)| name == next.name)) {
                index.set(&default_name(), &next.image);
            }
            Ok(())
        })?;
        self.default_kernel()
    }
}

#[cfg(test)]
mod tests;
