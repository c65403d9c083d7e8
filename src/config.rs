//! What a machine was asked to be. Key names are those of Firecracker's configuration file where it has one.

mod foreign;
mod guest;
mod replace;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arch::x86_64::cpuid::Mask;
use crate::console;
use crate::devices::virtio::{self, block};
use crate::memory::Pages;
use crate::options;

pub use replace::Error as ReplaceError;

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// What is booted.
    pub boot_source: BootSource,
    /// CPUs and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// Drives, network interfaces and the other virtio devices.
    #[serde(flatten)]
    pub devices: virtio::Configs,
    /// Where the serial console is.
    #[serde(default)]
    pub console: console::Config,
    /// A restart in the guest ends the machine.
    #[serde(default)]
    pub no_reboot: bool,
    /// The guest agrees on nothing with its devices that only some hosts have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not open.
    #[error("Cannot read the configuration {path}")]
    Read {
        /// Its path.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// It is not JSON, or a value has the wrong form.
    #[error("The configuration {path} is not valid")]
    Form {
        /// Its path.
        path: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// It has a key that means nothing.
    #[error("The configuration {path} has an unknown key `{key}`, did you mean `{nearest}`?")]
    UnknownKey {
        /// Its path.
        path: String,
        /// The key.
        key: String,
        /// The known key that looks most like it.
        nearest: &'static str,
    },
    /// No memory, or more than KVM takes.
    #[error("A machine can have 1M to 8T of memory, not {mib}M")]
    Memory {
        /// How much was asked for, in MiB.
        mib: u64,
    },
    /// Two disks that could not be told apart.
    #[error("Two disks are called {name}: give one of them another name with id=NAME")]
    SameName {
        /// Their name.
        name: String,
    },
    /// A serial number that the guest would not see whole.
    #[error(
        "The serial number `{serial}` of disk {name} is longer than 20 bytes: give it a shorter one with serial=TEXT"
    )]
    Serial {
        /// The disk.
        name: String,
        /// What is too long.
        serial: String,
    },
}

impl VmConfig {
    /// A machine with defaults for all but what it boots.
    pub fn new(boot_source: BootSource) -> Self {
        VmConfig {
            boot_source,
            machine_config: MachineConfig::default(),
            devices: virtio::Configs::default(),
            console: console::Config::default(),
            no_reboot: false,
            portable: false,
        }
    }

    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        const OWN: [&str; 5] = ["boot-source", "machine-config", "console", "no-reboot", "portable"];
        let name = || path.display().to_string();
        let text = fs::read(path).map_err(|source| Error::Read { path: name(), source })?;
        let form = |source| Error::Form { path: name(), source };
        let mut keys: serde_json::Map<String, Value> = serde_json::from_slice(&text).map_err(form)?;
        let is_foreign = foreign::leave_out(&mut keys);
        let known: Vec<&str> = OWN.iter().chain(virtio::Configs::KEYS).copied().collect();
        if let Some(key) = keys.keys().find(|key| !known.contains(&key.as_str())) {
            let nearest = options::nearest(key, &known).unwrap_or_default();
            return Err(Error::UnknownKey { path: name(), key: key.clone(), nearest });
        }
        match is_foreign {
            true => serde_json::from_value(Value::Object(keys)).map_err(form),
            // From the text and not from `keys`, so that an error says its line.
            false => serde_json::from_slice(&text).map_err(form),
        }
    }

    /// Checks of a new machine what cannot be seen from one value alone.
    pub fn check(&self) -> Result<(), Error> {
        let mib = self.machine_config.mem_size_mib;
        if !(1..=MAX_MEMORY_MIB).contains(&mib) {
            return Err(Error::Memory { mib });
        }
        let mut names = HashSet::new();
        for (index, disk) in self.devices.block.iter().enumerate() {
            let name = disk.name(index);
            let serial = disk.serial.clone().unwrap_or_else(|| name.clone());
            if serial.len() > block::SERIAL_LEN {
                return Err(Error::Serial { name, serial });
            }
            if !names.insert(name.clone()) {
                return Err(Error::SameName { name });
            }
        }
        Ok(())
    }
}

/// Kernel, initial RAM disk and command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// ELF or bzImage.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk, handed over as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// What rvmm's own init is to run, in a document that goes behind the initial RAM disk
    /// ([`crate::image::initramfs`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<serde_json::Value>,
    /// The guest's kernel command line, complete.
    #[serde(default)]
    pub boot_args: String,
}

/// The most RAM in MiB: KVM takes no more in one piece (KVM_MEM_MAX_NR_PAGES).
pub const MAX_MEMORY_MIB: u64 = 8 << 20;

/// CPUs and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u32,
    /// RAM in MiB.
    pub mem_size_mib: u64,
    /// What kind of host pages back RAM.
    pub huge_pages: HugePages,
    /// CPU features that are hidden from the guest.
    #[serde(skip_serializing_if = "Mask::is_empty")]
    pub cpu_mask: Mask,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 256,
            huge_pages: HugePages::None,
            cpu_mask: Mask::default(),
        }
    }
}

/// Firecracker's names for host pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary pages, merged into transparent huge pages where the host can.
    #[default]
    None,
    /// Reserved huge pages of 2 MiB.
    #[serde(rename = "2M")]
    Size2M,
}

impl From<HugePages> for Pages {
    fn from(pages: HugePages) -> Self {
        match pages {
            HugePages::None => Pages::Transparent,
            HugePages::Size2M => Pages::Huge2M,
        }
    }
}
