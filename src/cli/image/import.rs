//! `rvmm import`: images of what others made.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use crate::cli::output::{Failure, print, print_json};
use crate::cli::{Common, store, variable};
use crate::image::import::{Container, DEFAULT_SIZE, Format, Options};
use crate::image::{Commit, Descriptor, Error, INITRAMFS, KERNEL, Lease, MAX_DISK, Machine, Name, Store};
use crate::options;
use crate::sys::user;

// Options of `import`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm import alpine.tar alpine              after docker save alpine -o alpine.tar
  rvmm import layout alpine:3                after skopeo copy docker://alpine oci:layout
  rvmm import rootfs.tar.xz debian:12 -m 'as debootstrap made it' -a ada
  rvmm import ./rootfs web
  docker save web | rvmm import - web
  rvmm import disk.qcow2 old:server --kernel vmlinuz --initrd initrd.img

SOURCE is a container image (docker-archive, or an OCI layout: a directory or an archive), a root file system (a \
directory or an archive), a disk (raw or qcow2). Archives may be compressed with gzip, bzip2, xz or zstd. Root is not needed. A container image gets one disk \
layer for each of its layers, so images that share layers share blobs. In a directory that is imported without root, the \
user's own files become root's.")]
pub struct Import {
    /// What is imported; - is standard input
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Name of the image
    #[arg(value_name = "REPO:TAG")]
    name: Name,
    /// What the source is: docker-archive, oci, rootfs, raw or qcow2 [default: as it looks]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// Which image of a source with several
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Kernel that the image boots
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk that goes with the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel arguments, appended to the defaults
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Size of the file system for what is no disk, with unit M, G or T; images share layers only if it is the same
    #[arg(long, value_name = "SIZE", value_parser = disk_size, default_value = "8G")]
    size: u64,
    /// What this version is
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
}

fn format(text: &str) -> Result<Format, String> {
    let words = Format::WORDS.map(|(word, _)| word);
    match Format::WORDS.iter().find(|(word, _)| *word == text) {
        Some((_, format)) => Ok(*format),
        None => {
            let nearest = options::nearest(text, &words).unwrap_or("raw");
            Err(format!("it is one of {}; did you mean `{nearest}`?", words.join(", ")))
        }
    }
}

/// The size of a file system.
pub fn disk_size(text: &str) -> Result<u64, options::Error> {
    let size = options::size(text, 1);
    size.filter(|size| (1 << 20..=MAX_DISK).contains(size) && size.is_multiple_of(4096))
        .ok_or_else(|| options::bad_value("size", text, "a size with its unit, such as 512M or 8G"))
}

/// Who makes a version: as the user says, else the user. Services and containers often have no USER.
pub fn author(told: Option<&String>) -> String {
    let variable = |name| variable(name)?.into_os_string().into_string().ok();
    let named = told.cloned().or_else(|| variable("RVMM_AUTHOR")).or_else(|| variable("USER"));
    named.or_else(|| user::name(user::effective())).unwrap_or_default()
}

/// Opens what boots: a regular file with something in it.
fn open_part(path: &Path) -> Result<File, Failure> {
    let cannot = |error: io::Error| Failure::usage(format!("Cannot open {}: {error}", path.display()));
    // A pipe would be waited for.
    let found = fs::metadata(path).map_err(cannot)?;
    if !found.is_file() {
        return Err(Failure::usage(format!("{} is not a regular file", path.display())));
    }
    if found.len() == 0 {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    File::open(path).map_err(cannot)
}

/// What is no kernel is told here, and not when the image is to run.
fn open_kernel(path: &Path) -> Result<File, Failure> {
    let file = open_part(path)?;
    crate::arch::x86_64::kernel::Kernel::open(path, None).map_err(Failure::refused)?;
    Ok(file)
}

impl Import {
    /// Makes an image.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let kernel = self.kernel.as_ref().map(|path| open_kernel(path)).transpose()?;
        let initrd = self.initrd.as_ref().map(|path| open_part(path)).transpose()?;
        let store = store::open(common)?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        let mut blobs = Vec::new();
        for (file, kind) in [(kernel, KERNEL), (initrd, INITRAMFS)] {
            let Some(mut file) = file else { continue };
            blobs.push(store.put_file(&mut lease, kind, &mut file).map_err(Failure::refused)?);
        }
        let author = author(self.author.as_ref());
        let machine =
            self.cmdline.as_ref().map(|cmdline| Machine { boot_args: cmdline.clone(), ..Machine::default() });
        let about = Commit {
            message: &self.message,
            author: &author,
            created_by: "rvmm import",
            machine,
            blobs: &blobs,
            ..Commit::new(SystemTime::now())
        };
        let scratch = store.scratch().map_err(Failure::refused)?;
        let source = self.source(scratch.path())?;
        let image = self.import(&store, &mut lease, &source, about).map_err(Failure::refused)?;
        store.tag(&self.name, &image).map_err(Failure::refused)?;
        store::unpack(&store, &image);
        match common.json {
            true => print_json(&json!({ "name": self.name.to_string(), "digest": image.digest }))?,
            false => print(image.digest)?,
        }
        Ok(0)
    }

    /// What is imported, as a file: what comes on standard input is written to one first, for it is not read in order.
    fn source(&self, scratch: &Path) -> Result<PathBuf, Failure> {
        if self.source.as_os_str() != "-" {
            return Ok(self.source.clone());
        }
        let mut from = io::stdin();
        if from.is_terminal() {
            return Err(Failure::usage("Nothing to import: say a file, or redirect the input"));
        }
        let path = scratch.join("standard input");
        let written = File::create(&path).and_then(|mut file| io::copy(&mut from, &mut file));
        written.map_err(|error| Failure::refused(format!("Cannot keep what is to be imported: {error}")))?;
        Ok(path)
    }

    fn import(
        &self,
        store: &Store,
        lease: &mut Lease,
        from: &Path,
        about: Commit,
    ) -> Result<Descriptor, Error> {
        let format = match self.format {
            Some(format) => format,
            None => Format::detect(from)?,
        };
        let wanted = self.image.as_deref();
        let options = Options { size: self.size, about };
        match format {
            Format::DockerArchive => {
                store.import_container(lease, &Container::from_archive(store, from, wanted)?, &options)
            }
            Format::Oci if from.is_dir() => {
                store.import_container(lease, &Container::from_layout(from, wanted)?, &options)
            }
            Format::Oci => {
                store.import_container(lease, &Container::from_layout_archive(store, from, wanted)?, &options)
            }
            Format::Rootfs if from.is_dir() => store.import_directory(lease, from, &options),
            Format::Rootfs => store.import_rootfs(lease, from, &options),
            format => store.import_disk(lease, from, format, &options.about),
        }
    }
}

// The default is told to people in their units.
const _: () = assert!(DEFAULT_SIZE == 8 << 30);
