//! The kernel's virtual machine interface (Documentation/virt/kvm/api.rst), as the monitor uses it.

pub mod probe;
pub mod state;
mod vcpu;
mod vm;

pub use vcpu::{Exit, Interrupter, Vcpu};
pub use vm::{Reserved, Vm};

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::sys::user;

/// What this monitor cannot work without.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why KVM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/kvm does not open.
    #[error("Cannot open /dev/kvm: {hint}")]
    Open {
        /// What the user can do about it.
        hint: String,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// The kernel's KVM is too old or too small.
    #[error("This KVM lacks {missing}, which rvmm needs")]
    Capability {
        /// Names of the capabilities.
        missing: String,
    },
    /// No vCPU, or more than this KVM has.
    #[error("A machine can have 1 to {limit} vCPUs here, not {wanted}")]
    Vcpus {
        /// How many were asked for.
        wanted: u32,
        /// How many there can be.
        limit: u32,
    },
    /// An ioctl failed.
    #[error("KVM refused to {doing}")]
    Ioctl {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// Saved state has a model-specific register that this KVM has not, or a value that it does not take.
    #[error("KVM does not take {value:#x} for the model-specific register {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// The value.
        value: u64,
    },
    /// Saved state has more registers than this KVM.
    #[error("The saved vector registers take {found} bytes, this KVM has {limit}")]
    Xsave {
        /// Bytes saved.
        found: usize,
        /// Bytes that KVM has.
        limit: usize,
    },
    /// The guest's time stamp counter would run at another speed.
    #[error(
        "The saved TSC runs at {saved} kHz, that of this host at {here} kHz, and this KVM cannot scale it"
    )]
    Tsc {
        /// As it was.
        saved: u32,
        /// As it is here.
        here: u32,
    },
    /// A small loop of instructions did not come to its end.
    #[error("KVM does not run a loop of three instructions: {exit}")]
    Loop {
        /// What came instead.
        exit: String,
    },
    /// A table that is handed to KVM is longer than KVM takes.
    #[error("Too many entries to {doing}")]
    TooMany {
        /// What was being done.
        doing: &'static str,
    },
}

/// Turns the kernel's answer into an [`Error`] that says what was being done.
fn ioctl(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Ioctl { doing, source }
}

const DEVICE: &str = "/dev/kvm";

/// Opens /dev/kvm.
///
/// # Errors
/// When it is not there or not for this user; the error says what can be done.
pub fn open_device() -> Result<Kvm, Error> {
    Kvm::new().map_err(|source| {
        let hint = match source.errno() {
            libc::ENOENT => {
                "the kernel's kvm module is not loaded, or virtualization is off in the firmware".into()
            }
            libc::EACCES => format!("no permission, give yourself access: `{}`", access_command()),
            _ => "`rvmm doctor` says what this machine offers".into(),
        };
        Error::Open { hint, source }
    })
}

/// Whether the kernel's modules that use the processor's virtualization are there, or nobody knows. How fast a guest's kernel
/// is then is measured by [`probe::speed`].
pub fn may_have_hardware() -> bool {
    let modules = Path::new("/sys/module");
    !modules.exists() || ["kvm_intel", "kvm_amd"].iter().any(|name| modules.join(name).exists())
}

/// What gives this user access to /dev/kvm: its group, if that has access, else a right of the user's own.
pub fn access_command() -> String {
    let metadata = std::fs::metadata(DEVICE).ok().filter(|metadata| metadata.mode() & 0o060 == 0o060);
    match metadata.and_then(|metadata| user::group(metadata.gid())) {
        // Whoever is in root's group has more than a device.
        Some(group) if group != "root" => format!("sudo usermod -aG {group} $USER   # and log in again"),
        _ => format!("sudo setfacl -m u:$USER:rw {DEVICE}"),
    }
}

/// Opens /dev/kvm and checks that it can do what is needed.
pub fn open() -> Result<Kvm, Error> {
    let kvm = open_device()?;
    let missing = missing_capabilities(&kvm);
    match missing.is_empty() {
        true => Ok(kvm),
        false => Err(Error::Capability { missing: missing.join(", ") }),
    }
}

/// Names of the capabilities that are needed and not there.
pub fn missing_capabilities(kvm: &Kvm) -> Vec<&'static str> {
    REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect()
}

/// The CPUID table that this KVM can give a guest.
pub fn supported_cpuid(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map(|cpuid| cpuid.as_slice().to_vec())
        .map_err(ioctl("list the CPU features it supports"))
}

/// vCPUs that have APIC identifiers of their own in 8 bits, where number 255 means all. More need those of x2APIC, with 32 bits.
const XAPIC_VCPUS: u32 = 255;
/// What KVM_CAP_X2APIC_API is to do: identifiers have 32 bits, and 255 is one of them.
const X2APIC_IDS: u32 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// How many vCPUs a machine can have here.
fn most_vcpus(kvm: &Kvm) -> u32 {
    let wide = kvm.check_extension_int(Cap::X2ApicApi) as u32 & X2APIC_IDS == X2APIC_IDS;
    let limit = if wide { u32::MAX } else { XAPIC_VCPUS };
    limit.min(kvm.get_max_vcpus() as u32)
}

/// Checks that a machine can have `wanted` vCPUs here.
pub fn check_vcpus(kvm: &Kvm, wanted: u32) -> Result<(), Error> {
    let limit = most_vcpus(kvm);
    match (1..=limit).contains(&wanted) {
        true => Ok(()),
        false => Err(Error::Vcpus { wanted, limit }),
    }
}
