//! `rvmm run` and the bare form: boot a machine in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use log::warn;

use super::Common;
use super::boot_timer::BootTimer;
use super::life::Life;
use super::output::Failure;
use crate::api::name::Name;
use crate::arch::x86_64::cpuid::Mask;
use crate::config::{BootSource, HugePages, MAX_MEMORY_MIB, MachineConfig, VmConfig};
use crate::console;
use crate::devices::virtio::{self, block};
use crate::net::user as net;
use crate::options;

/// What the guest's kernel is told unless the user says otherwise. No PCI bus is there to be searched, which takes no time if the
/// kernel believes that it can, and one serial port. A kernel that panics resets the machine, which ends it: the panic device may have no
/// driver yet.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 pci=conf1,noearly 8250.nr_uarts=1";

/// Seconds that a guest may take to switch itself off when nobody says otherwise.
pub const STOP_TIMEOUT: u64 = 10;

// Options of a machine.
#[derive(clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct Args {
    /// Name of the machine, by which `rvmm ps`, `stop` and the others know it [default: a random one]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<Name>,
    /// Kernel to boot: ELF or bzImage, also a distribution's /boot/vmlinuz-*
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// Kernel arguments, appended to the defaults; the last one wins
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Kernel arguments, instead of the defaults
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, conflicts_with = "cmdline")]
    cmdline_only: Option<String>,
    #[command(flatten)]
    pub(super) devices: virtio::Configs,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = number_of_vcpus)]
    cpus: Option<u32>,
    /// RAM in MiB, or with its unit: 512M, 2G [default: 256M]
    #[arg(short, long, value_name = "SIZE", value_parser = mebibytes)]
    memory: Option<u64>,
    /// Back RAM with reserved huge pages of 2 MiB
    #[arg(long)]
    huge_pages: bool,
    /// CPU features to hide from the guest, or a baseline: x86-64-v2, x86-64-v3
    #[arg(long, value_name = "NAMES")]
    cpu_mask: Option<Mask>,
    /// Where the serial console is: stdio, off, file=PATH, pty, socket=PATH, or log for `rvmm logs` and `attach` [default: stdio]
    #[arg(long, value_name = "PLACE")]
    pub(super) console: Option<console::Config>,
    /// Read the machine from a file with Firecracker's keys; options on the command line win, and disks, interfaces or other
    /// devices that are given here are instead of all of their kind there
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// End the machine when the guest restarts
    #[arg(long)]
    no_reboot: bool,
    /// Let the guest agree on nothing with its devices that only some hosts and links have, so that it can be restored
    /// anywhere
    #[arg(long)]
    portable: bool,
    /// Leave what the guest wrote to its disks since the first snapshot beside them when the machine ends, in
    /// DISK.overlay-N; who opens the disk next merges it, if nobody has written to the disk since
    #[arg(long)]
    keep_overlay: bool,
    /// How long a guest may take to switch itself off when it is asked to (SIGTERM, SIGINT, `rvmm stop`); a second signal ends
    /// the machine at once
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT, value_parser = seconds)]
    pub(super) stop_timeout: u64,
    /// Write when the machine first ran and when the guest reached each milestone (boot-timer port 0x3e9), as JSON lines
    /// with the time of CLOCK_MONOTONIC
    #[arg(long, value_name = "FILE")]
    pub(super) boot_timer: Option<PathBuf>,
}

impl Args {
    /// Nothing is asked that would make the machine another one for a guest that runs already.
    pub(super) fn is_plain(&self) -> bool {
        let virtio::Configs { block, net: _, rng, vsock } = &self.devices;
        let boots = self.kernel.is_some() || self.initrd.is_some();
        let told = self.cmdline.is_some() || self.cmdline_only.is_some();
        let sized =
            self.cpus.is_some() || self.memory.is_some() || self.huge_pages || self.cpu_mask.is_some();
        let lives = self.no_reboot || self.portable || self.keep_overlay;
        block.is_empty() && rng.is_empty() && vsock.is_empty() && !(boots || told || sized || lives)
    }
}

/// Boots a machine and stays until it ends.
pub fn run(args: Args, common: &Common) -> Result<u8, Failure> {
    let boot_timer = args.boot_timer.as_deref().map(BootTimer::create).transpose().map_err(Failure::usage)?;
    let life = Life {
        name: args.name.clone(),
        grace: Duration::from_secs(args.stop_timeout),
        boot_timer,
        ..Life::default()
    };
    life.live(configure(args, None)?, None, common)
}

/// Makes the configuration of the file and the options, over what an image wants.
pub(super) fn configure(mut args: Args, image: Option<VmConfig>) -> Result<VmConfig, Failure> {
    let mut config = match (image, &args.config, &args.kernel) {
        (Some(mut config), ..) => {
            // The image's own disk comes first.
            args.devices.block.splice(0..0, std::mem::take(&mut config.devices.block));
            config
        }
        (None, Some(path), _) => VmConfig::read(path).map_err(Failure::usage)?,
        (None, None, Some(_)) => VmConfig::new(BootSource::default()),
        (None, None, None) => {
            return Err(Failure::usage(
                "No kernel: say --kernel FILE or --config FILE, or `rvmm run IMAGE` (--help shows more)",
            ));
        }
    };
    let MachineConfig { vcpu_count, mem_size_mib, huge_pages, cpu_mask } = &mut config.machine_config;
    set(vcpu_count, args.cpus);
    set(mem_size_mib, args.memory);
    set(huge_pages, args.huge_pages.then_some(HugePages::Size2M));
    set(cpu_mask, args.cpu_mask);
    set(&mut config.console, args.console);
    set(&mut config.boot_source.kernel_image_path, args.kernel);
    config.boot_source.initrd_path = args.initrd.or(config.boot_source.initrd_path);
    config.no_reboot |= args.no_reboot;
    config.portable |= args.portable;
    config.devices.replace(args.devices);
    let own = config.devices.block.iter_mut().filter(|disk| disk.base.is_empty());
    own.for_each(|disk| disk.keep_overlay |= args.keep_overlay);
    config.check().map_err(Failure::usage)?;
    complete(&mut config.devices);
    let boot_args = std::mem::take(&mut config.boot_source.boot_args);
    config.boot_source.boot_args = match args.cmdline_only {
        Some(only) => only,
        None => cmdline(boot_args, &config.devices.block, args.cmdline),
    };
    Ok(config)
}

/// The defaults, or what the file says; where the root file system is, if that is not said; what the user adds.
fn cmdline(boot_args: String, disks: &[block::Config], more: Option<String>) -> String {
    // A file that has its own arguments must say which disk it is, as for Firecracker.
    let marked = disks.iter().position(|disk| disk.is_root_device);
    let root = if boot_args.is_empty() { marked.or(Some(0)) } else { marked };
    let mut words = if boot_args.is_empty() { vec![CMDLINE.into()] } else { vec![boot_args] };
    if !words[0].split(' ').any(|word| word.starts_with("root="))
        && let Some((index, disk)) = root.and_then(|index| Some((index, disks.get(index)?)))
    {
        let access = if disk.is_read_only { "ro" } else { "rw" };
        words.push(format!("root=/dev/{} {access}", block::Config::default().name(index)));
    }
    words.extend(more);
    words.join(" ")
}

/// Adds what every machine has unless the user says otherwise: a network where that needs no privileges, a
/// source of entropy, and a channel to programs in the guest.
fn complete(devices: &mut virtio::Configs) {
    if devices.net.is_empty() {
        match net::installed() {
            true => devices.net.push(virtio::net::Config::user()),
            false => warn!(
                "the machine has no network: passt is not installed (apt install passt), and no --net is given"
            ),
        }
    }
    devices.net.retain(|interface| !interface.is_none());
    if devices.rng.is_empty() {
        devices.rng.push(virtio::rng::Config::default());
    }
    if devices.vsock.is_empty() {
        devices.vsock.push(virtio::vsock::Config::default());
    }
    devices.vsock.retain(|vsock| !vsock.is_none());
}

fn set<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

/// A number of seconds. One that does not fit 32 bits would be cut where it is told in milliseconds.
pub fn seconds(text: &str) -> Result<u64, options::Error> {
    let takes = "a number of seconds up to 4294967295, such as 10";
    text.parse::<u32>().map(u64::from).map_err(|_| options::bad_value("timeout", text, takes))
}

/// A number of vCPUs.
fn number_of_vcpus(text: &str) -> Result<u32, options::Error> {
    text.parse().map_err(|_| options::bad_value("cpus", text, "a number, such as 2"))
}

/// A size in MiB from `512M`, `2G` or `512`.
fn mebibytes(text: &str) -> Result<u64, options::Error> {
    let size = options::size(text, 1 << 20).map(|bytes| bytes >> 20);
    size.filter(|size| (1..=MAX_MEMORY_MIB).contains(size))
        .ok_or_else(|| options::bad_value("memory", text, "a size from 1M to 8T, such as 512M or 2G"))
}
