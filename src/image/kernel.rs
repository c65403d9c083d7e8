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
use super::lease::Lease;
use super::manifest::{Descriptor, INITRAMFS, KERNEL};
use super::name::Name;
use super::refs::Index;
use super::store::Store;
use crate::options::nearest;

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
        let replaces_default = self.default_kernel()?.is_none_or(|kernel| kernel.name == name);
        let image = self.commit(&mut lease, &about, None)?;
        self.tag(&full, &image)?;
        if replaces_default {
            self.tag(&self::full(DEFAULT)?, &image)?;
        }
        self.kernel(name)
    }

    /// All kernels, in the order of their names.
    ///
    /// # Errors
    /// When a document cannot be read.
    pub fn kernels(&self) -> Result<Vec<Kernel>, Error> {
        let index = self.read_index()?;
        let named = index.manifests.iter().filter_map(|entry| {
            let name = Index::name_of(entry)?.strip_prefix(REPOSITORY)?.strip_prefix(':')?;
            (name != DEFAULT).then_some((name, entry))
        });
        named.map(|(name, entry)| self.read_kernel(&index, name, entry)).collect()
    }

    fn read_kernel(&self, index: &Index, name: &str, entry: &Descriptor) -> Result<Kernel, Error> {
        let image = Descriptor::new(&entry.media_type, entry.digest, entry.size);
        let manifest = self.manifest(&image)?;
        let config = self.config(&manifest)?;
        let blob = |kind| {
            let found = manifest.of_type(kind).next().cloned();
            found.ok_or_else(|| Error::invalid(format!("Kernel `{name}`"), format!("it has no {kind}")))
        };
        let default = index.get(&format!("{REPOSITORY}:{DEFAULT}"));
        Ok(Kernel {
            name: name.into(),
            version: config.config.labels.get(VERSION).cloned().unwrap_or_default(),
            kernel: blob(KERNEL)?,
            initramfs: blob(INITRAMFS)?,
            boot_args: config.machine.boot_args,
            created: config.created,
            is_default: default.is_some_and(|default| default.digest == image.digest),
            image,
        })
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when a document cannot be read.
    pub fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let mut kernels = self.kernels()?;
        match kernels.iter().position(|kernel| kernel.name == name) {
            Some(place) => Ok(kernels.swap_remove(place)),
            None => {
                let names: Vec<&str> = kernels.iter().map(|kernel| &kernel.name[..]).collect();
                let nearest = nearest(name, &names).map(Into::into);
                Err(Error::UnknownKernel { name: name.into(), nearest })
            }
        }
    }

    /// The kernel with which images run that bring none, if there is one.
    ///
    /// # Errors
    /// When a document cannot be read.
    pub fn default_kernel(&self) -> Result<Option<Kernel>, Error> {
        Ok(self.kernels()?.into_iter().find(|kernel| kernel.is_default))
    }

    /// Makes a kernel the default.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when the host refuses.
    pub fn set_default_kernel(&self, name: &str) -> Result<Kernel, Error> {
        let kernel = self.kernel(name)?;
        self.tag(&full(DEFAULT)?, &kernel.image)?;
        Ok(Kernel { is_default: true, ..kernel })
    }

    /// Takes a kernel out; its blobs stay until `gc`. Returns the one that is the default then, which is another one if this was it.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or when the host refuses.
    pub fn remove_kernel(&self, name: &str) -> Result<Option<Kernel>, Error> {
        let kernel = self.kernel(name)?;
        self.untag(&full(name)?)?;
        if kernel.is_default && self.default_kernel()?.is_none() {
            // The one that came last is most likely the newest.
            match self.kernels()?.into_iter().max_by(|a, b| a.created.cmp(&b.created)) {
                Some(next) => return self.set_default_kernel(&next.name).map(Some),
                None => self.untag(&full(DEFAULT)?)?,
            }
        }
        self.default_kernel()
    }

    /// Holds a kernel for this process, which is about to run it.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], or when the host refuses.
    pub fn hold_kernel(&self, lease: &mut Lease, kernel: &Kernel) -> Result<(), Error> {
        for digest in [kernel.image.digest, kernel.kernel.digest, kernel.initramfs.digest] {
            if !lease.hold(&digest)? {
                return Err(Error::MissingBlob { digest });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::image::initramfs;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// The header of a boot image with a version.
    fn boot_image(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x210];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x10u16.to_le_bytes());
        bytes.extend(version);
        bytes
    }

    #[test]
    fn kernels_say_their_version() {
        let found = |bytes: &[u8]| version(&file(bytes)).unwrap();
        assert_eq!(
            found(&boot_image(b"6.1.0-48-cloud-amd64 (me@there) #1\0")).unwrap(),
            "6.1.0-48-cloud-amd64"
        );
        for bad in [&b""[..], b"noend", b" 6.1 \0"] {
            assert_eq!(found(&boot_image(bad)), None);
        }
        let mut elf = b"\x7fELF".to_vec();
        elf.resize((1 << 20) - 6, b'x');
        elf.extend(b"Linux version %s (%s)\0Linux version 6.12.3+ (me@there) \n");
        assert_eq!(found(&elf).unwrap(), "6.12.3+");
        assert_eq!(found(b"\x7fELF without"), None);
        assert_eq!(found(b"text"), None);
        assert_eq!(name_of_version("6.12.3+"), "6.12.3_");
    }

    #[test]
    fn kernels_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let initramfs = initramfs::build(None).unwrap();
        assert_eq!((store.kernels().unwrap(), store.default_kernel().unwrap()), (vec![], None));

        let add = |name: &str| store.add_kernel(name, &mut file(b"kernel one"), "6.1", &initramfs, "quiet");
        let one = add("one").unwrap();
        assert!(one.is_default && one.version == "6.1" && one.boot_args == "quiet");
        assert_eq!(std::fs::read(store.blob(&one.kernel.digest)).unwrap(), b"kernel one");
        assert_eq!(std::fs::read(store.blob(&one.initramfs.digest)).unwrap(), initramfs.bytes);
        let two = store.add_kernel("two", &mut file(b"kernel two"), "6.2", &initramfs, "").unwrap();
        assert!(!two.is_default);
        assert_eq!(store.images().unwrap(), vec![], "kernels are not listed as images");

        store.gc().unwrap();
        let mut lease = store.lease().unwrap();
        store.hold_kernel(&mut lease, &two).unwrap();
        assert!(store.set_default_kernel("two").unwrap().is_default);
        assert_eq!(store.default_kernel().unwrap().unwrap().name, "two");
        assert_eq!(store.remove_kernel("two").unwrap().unwrap().name, "one");
        store.gc().unwrap();
        assert!(store.has(&two.kernel.digest), "it is in use");
        drop(lease);
        store.gc().unwrap();
        assert!(!store.has(&two.kernel.digest));
        let error = store.kernel("oen").unwrap_err().to_string();
        assert_eq!(error, "There is no kernel `oen`, did you mean `one`?");
        assert_eq!(store.remove_kernel("one").unwrap(), None);
        assert!(store.gc().unwrap().blobs >= 4 && store.read_index().unwrap().manifests.is_empty());

        for bad in ["default", "", "a/b", "a:b", ".x", "a b"] {
            assert!(add(bad).is_err(), "{bad}");
        }
    }
}
