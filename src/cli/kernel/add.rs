//! `rvmm kernel add`: from a file of this host, or from a package of its distribution.

use std::fs::File;
use std::path::{Path, PathBuf};

use log::warn;

use super::package;
use crate::cli::output::{Failure, print, print_json};
use crate::cli::{CMDLINE, Common, store};
use crate::image::initramfs::{self, Modules};
use crate::image::{Kernel, Store, kernel};

// Options of `kernel add`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm kernel add /boot/vmlinuz-$(uname -r)
  rvmm kernel add --from-package
  rvmm kernel add --from-package linux-image-6.12.90+deb12-cloud-amd64-unsigned --name newest
  rvmm kernel add vmlinuz --modules tree/lib/modules/6.8.0 --name mine

Modules are looked for in /lib/modules/VERSION unless --modules names their directory. A kernel \
that has all drivers built in needs none. With --from-package, apt downloads the package into a \
scratch directory, which needs no root, and nothing is installed.")]
pub struct Add {
    /// A kernel: ELF or bzImage, also a distribution's /boot/vmlinuz-*
    #[arg(value_name = "FILE", required_unless_present = "from_package", conflicts_with = "from_package")]
    file: Option<PathBuf>,
    /// Where the kernel's modules are
    #[arg(long, value_name = "DIR", conflicts_with = "from_package")]
    modules: Option<PathBuf>,
    /// Name of the kernel [default: its version]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take the kernel of a Debian or Ubuntu package [default: the one for clouds]
    #[arg(long, value_name = "PACKAGE", num_args = 0..=1, default_missing_value = "")]
    from_package: Option<String>,
}

impl Add {
    /// Adds the kernel.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let kernel = match (&self.file, &self.from_package) {
            (Some(file), _) => self.add(&store, file, self.modules.as_deref())?,
            (None, package) => {
                let package = package.as_deref().filter(|package| !package.is_empty());
                let unpacked = package::fetch(package, &store)?;
                self.add(&store, &unpacked.kernel, Some(&unpacked.modules))?
            }
        };
        match common.json {
            true => print_json(&super::described(&kernel))?,
            false => print(&kernel.name)?,
        }
        Ok(0)
    }

    fn add(&self, store: &Store, path: &Path, modules: Option<&Path>) -> Result<Kernel, Failure> {
        let cannot =
            |error: std::io::Error| Failure::refused(format!("Cannot read {}: {error}", path.display()));
        let mut file = File::open(path).map_err(cannot)?;
        // What is no kernel is told here, and not when the first image is to run.
        crate::arch::x86_64::kernel::Kernel::open(path, None).map_err(Failure::refused)?;
        let version = kernel::version(&file).map_err(cannot)?;
        let modules = match (find(modules, version.as_deref()), &version) {
            (Some(directory), Some(version)) => {
                Some(Modules::open(&directory, version).map_err(Failure::refused)?)
            }
            (None, _) if modules.is_some() => {
                let (place, version) = (modules.unwrap_or(path).display(), version.unwrap_or_default());
                return Err(Failure::refused(format!("{place} has no modules of kernel {version}")));
            }
            (_, version) => {
                let version = version.as_deref().unwrap_or("of unknown version");
                warn!(
                    "no modules of kernel {version} are found: images run if its drivers are built in, else say --modules DIR"
                );
                None
            }
        };
        let initramfs = initramfs::build(modules.as_ref()).map_err(Failure::refused)?;
        if !initramfs.missing.is_empty() {
            warn!("the kernel lacks what images need: {}", initramfs.missing.join(", "));
        }
        let version = version.unwrap_or_default();
        let name = match (&self.name, version.is_empty()) {
            (Some(name), _) => name.clone(),
            (None, false) => kernel::name_of_version(&version),
            (None, true) => {
                let reason =
                    format!("{} does not say its version: give it a name with --name", path.display());
                return Err(Failure::usage(reason));
            }
        };
        store.add_kernel(&name, &mut file, &version, &initramfs, CMDLINE).map_err(Failure::refused)
    }
}

/// The directory with the modules: itself, or in it as in the root of a system.
fn find(directory: Option<&Path>, version: Option<&str>) -> Option<PathBuf> {
    // A version is one word without slashes, or it is none.
    let version = version.filter(|version| !version.contains('/') && *version != "..")?;
    let has_modules = |path: &PathBuf| path.join("kernel").is_dir() || path.join("modules.builtin").is_file();
    let places = match directory {
        Some(directory) => vec![
            directory.to_path_buf(),
            directory.join(version),
            directory.join("lib/modules").join(version),
            directory.join("usr/lib/modules").join(version),
        ],
        None => ["/lib/modules", "/usr/lib/modules"].map(|place| Path::new(place).join(version)).into(),
    };
    places.into_iter().find(has_modules)
}
