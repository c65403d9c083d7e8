//! The monitors that are measured and the command lines that make them boot the same guest.

use std::path::{Path, PathBuf};

use crate::common::find;

/// Guest memory in MiB, for everybody.
pub const MEMORY_MIB: u64 = 256;

/// How the guest's milestones are learnt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stamps {
    /// Not at all.
    None,
    /// From the file of `--boot-timer`.
    File,
    /// Bytes of the boot-timer port come on standard output.
    Output,
}

/// A command that boots the guest once.
pub struct Monitor {
    pub name: String,
    pub command: Vec<String>,
    pub stamps: Stamps,
    /// The exit status of a good end.
    pub status: i32,
    /// Start each time with an empty cache.
    pub cold: bool,
    /// Whether it is an rvmm, not a peer.
    pub ours: bool,
}

/// What is booted.
pub enum Guest {
    /// The bare-metal guest at this path; it ends at once, or halts for good.
    Bare { elf: PathBuf, halt: bool },
    /// A Linux kernel with an initial RAM disk; it runs to user space and ends.
    Linux { kernel: PathBuf, initrd: PathBuf },
}

impl Guest {
    fn kernel(&self) -> String {
        match self {
            Guest::Bare { elf, .. } => text(elf),
            Guest::Linux { kernel, .. } => text(kernel),
        }
    }

    fn initrd(&self) -> Option<String> {
        match self {
            Guest::Bare { .. } => None,
            Guest::Linux { initrd, .. } => Some(text(initrd)),
        }
    }

    /// The command line of a guest that ends itself as its monitor understands it: `end` for the bare-metal guest,
    /// a command of Linux, and what Linux needs to be told for that.
    fn arguments(&self, end: &str, command: &str, extra: &str) -> String {
        match self {
            Guest::Bare { halt: true, .. } => "test=exit end=hlt".into(),
            Guest::Bare { .. } if end.is_empty() => "test=exit".into(),
            Guest::Bare { .. } => format!("test=exit end={end}"),
            Guest::Linux { .. } => {
                format!(
                    "{} rvmm.stamp rvmm.net=off rvmm.exec={} {extra}",
                    rvmm::cli::CMDLINE,
                    base64(command)
                )
            }
        }
    }
}

/// rvmm at `program`.
pub fn rvmm(name: &str, program: &Path, guest: &Guest) -> Monitor {
    let mut command = vec![text(program), "--kernel".into(), guest.kernel()];
    command.extend(guest.initrd().map(|initrd| ["--initrd".into(), initrd]).into_iter().flatten());
    command.extend(["--memory".into(), format!("{MEMORY_MIB}M"), "--net".into(), "none".into()]);
    command.extend(["--cmdline-only".into(), guest.arguments("", "poweroff -f", "")]);
    Monitor { name: name.into(), command, stamps: Stamps::File, status: 0, cold: false, ours: true }
}

/// Every peer that is installed here.
pub fn peers(guest: &Guest, scratch: &Path) -> Vec<Monitor> {
    [qemu(guest), firecracker(guest, scratch), cloud_hypervisor(guest)].into_iter().flatten().collect()
}

/// QEMU's smallest machine. Its debug console at the boot timer's port gives the stamps.
fn qemu(guest: &Guest) -> Option<Monitor> {
    let program = find("RVMM_BENCH_QEMU", "qemu-system-x86_64")?;
    let mut command = vec![text(&program)];
    let memory = MEMORY_MIB.to_string();
    command.extend(
        [
            "-M",
            "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off",
            "-cpu",
            "host,-arch-capabilities",
            "-m",
            &memory,
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "null",
            "-chardev",
            "stdio,id=stamps,signal=off",
            "-device",
            "isa-debugcon,iobase=0x3e9,chardev=stamps",
            "-device",
            "isa-debug-exit,iobase=0x501,iosize=1",
        ]
        .map(String::from),
    );
    command.extend(["-kernel".into(), guest.kernel()]);
    command.extend(guest.initrd().map(|initrd| ["-initrd".into(), initrd]).into_iter().flatten());
    command.extend(["-append".into(), guest.arguments("qemu-exit", "reboot -f", "reboot=t")]);
    let status = if matches!(guest, Guest::Bare { .. }) { 1 } else { 0 };
    Some(peer("QEMU microvm", command, Stamps::Output, status))
}

/// Firecracker with a configuration file and without an API. It boots ELF kernels only.
fn firecracker(guest: &Guest, scratch: &Path) -> Option<Monitor> {
    let program = find("RVMM_BENCH_FIRECRACKER", "firecracker")?;
    if matches!(guest, Guest::Linux { kernel, .. } if !is_elf(kernel)) {
        return None;
    }
    let kind = if guest.initrd().is_some() { "linux" } else { "bare" };
    let file = scratch.join(format!("firecracker-{kind}.json"));
    let mut source = serde_json::json!({
        "kernel_image_path": guest.kernel(),
        "boot_args": guest.arguments("firecracker", "reboot -f", "reboot=k panic=1"),
    });
    if let Some(initrd) = guest.initrd() {
        source["initrd_path"] = initrd.into();
    }
    let config = serde_json::json!({
        "boot-source": source,
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    });
    std::fs::write(&file, config.to_string()).ok()?;
    let command = vec![text(&program), "--no-api".into(), "--config-file".into(), text(&file)];
    Some(peer("Firecracker", command, Stamps::None, 0))
}

fn cloud_hypervisor(guest: &Guest) -> Option<Monitor> {
    let program = find("RVMM_BENCH_CLOUD_HYPERVISOR", "cloud-hypervisor")?;
    let mut command = vec![text(&program), "--kernel".into(), guest.kernel()];
    command.extend(guest.initrd().map(|initrd| ["--initramfs".into(), initrd]).into_iter().flatten());
    command.extend(["--cpus".into(), "boot=1".into(), "--memory".into(), format!("size={MEMORY_MIB}M")]);
    command.extend(["--console".into(), "off".into(), "--serial".into(), "null".into()]);
    command.extend(["--cmdline".into(), guest.arguments("", "poweroff -f", "")]);
    Some(peer("Cloud Hypervisor", command, Stamps::None, 0))
}

fn peer(name: &str, command: Vec<String>, stamps: Stamps, status: i32) -> Monitor {
    Monitor { name: name.into(), command, stamps, status, cold: false, ours: false }
}

fn is_elf(path: &Path) -> bool {
    std::fs::File::open(path).is_ok_and(|mut file| {
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"\x7fELF"
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(*chunk.get(index).unwrap_or(&0)));
        for digit in 0..4 {
            match digit <= chunk.len() {
                true => encoded.push(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize].into()),
                false => encoded.push('='),
            }
        }
    }
    encoded
}
