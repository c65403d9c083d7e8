//! What the kernel's KVM can do: is it there, is it complete, and is it hardware that runs the guest.

use std::fs;
use std::path::Path;

use kvm_ioctls::Kvm;
use serde_json::{Value, json};

use super::Finding;
use super::Status::{Missing, Ok, Warn};
use crate::kvm::{self, missing_capabilities, open_device, probe};
use crate::vmm::chain;

/// The version that the interface has had since 2007.
const API_VERSION: i32 = 12;

/// Everything about KVM. Without the device the rest cannot be looked at, and is not in the list.
pub fn checks() -> Vec<Finding> {
    match open_device() {
        Result::Ok(kvm) => {
            vec![device(), api(&kvm), capabilities(&kvm), speed(&kvm), vcpus(&kvm), clocks(&kvm)]
        }
        Err(error) => vec![no_device(&error)],
    }
}

fn device() -> Finding {
    Finding::new("kvm-device", Ok, "/dev/kvm is there, and this user may use it", true)
}

fn no_device(error: &kvm::Error) -> Finding {
    let finding = |says: &str| Finding::new("kvm-device", Missing, says, false);
    if Path::new("/dev/kvm").exists() {
        return match error {
            kvm::Error::Open { source, .. } if source.errno() == libc::EACCES => {
                finding("/dev/kvm is there, but this user may not use it").fix(kvm::access_command())
            }
            _ => finding(&chain(error)),
        };
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    match flags.split_whitespace().find(|flag| ["vmx", "svm"].contains(flag)) {
        Some("vmx") => {
            finding("There is no /dev/kvm: the kernel's module is not loaded").fix("sudo modprobe kvm_intel")
        }
        Some(_) => {
            finding("There is no /dev/kvm: the kernel's module is not loaded").fix("sudo modprobe kvm_amd")
        }
        None => finding(
            "There is no /dev/kvm, and the CPU shows no virtualization: switch it on in the firmware, or nested \
             virtualization on the host if this is a virtual machine",
        ),
    }
}

fn api(kvm: &Kvm) -> Finding {
    let version = kvm.get_api_version();
    match version == API_VERSION {
        true => Finding::new("kvm-api", Ok, format!("KVM speaks version {version}"), version),
        false => {
            let says = format!("KVM speaks version {version} instead of {API_VERSION}: update the kernel");
            Finding::new("kvm-api", Missing, says, version)
        }
    }
}

fn capabilities(kvm: &Kvm) -> Finding {
    let missing = missing_capabilities(kvm);
    let (status, says) = match missing.is_empty() {
        true => (Ok, "KVM has all that rvmm needs".into()),
        false => (Missing, format!("KVM lacks {}: update the kernel", missing.join(", "))),
    };
    Finding::new("kvm-features", status, says, json!({ "missing": missing }))
}

fn speed(kvm: &Kvm) -> Finding {
    match probe::speed(kvm) {
        Result::Ok(speed) => {
            let millions = speed / 1e6;
            let value =
                json!({ "instructions_per_second": speed as u64, "hardware": speed >= probe::HARDWARE });
            match speed >= probe::HARDWARE {
                true => {
                    let says = format!(
                        "Hardware runs the guest's kernel: {millions:.0} million instructions per second"
                    );
                    Finding::new("kvm-speed", Ok, says, value)
                }
                false => {
                    let says = format!(
                        "Software runs the guest's kernel: {millions:.1} million instructions per second. Bare-metal \
                         guests run, Linux does not come up: use a host whose KVM has hardware virtualization"
                    );
                    Finding::new("kvm-speed", Missing, says, value)
                }
            }
        }
        Err(error) => Finding::new("kvm-speed", Missing, chain(&error), Value::Null),
    }
}

fn vcpus(kvm: &Kvm) -> Finding {
    let (max, recommended) = probe::vcpus(kvm);
    let says = format!("A machine can have {max} vCPUs, and should not have more than {recommended}");
    Finding::new("vcpus", Ok, says, json!({ "max": max, "recommended": recommended }))
}

fn clocks(kvm: &Kvm) -> Finding {
    let clocks = probe::clocks(kvm);
    let value = json!(clocks);
    let mut lacks = Vec::new();
    if !clocks.tsc_deadline {
        lacks.push("no TSC deadline timer (timers cost more)");
    }
    if !clocks.tsc_scaling {
        lacks.push("no TSC scaling (a snapshot wants a host of the same frequency)");
    }
    if !clocks.realtime {
        lacks.push("no wall clock with the guest's clock (restored guests keep time less exactly)");
    }
    match lacks.is_empty() {
        true => Finding::new("clocks", Ok, "A guest's clocks can be saved and restored exactly", value),
        false => Finding::new("clocks", Warn, format!("KVM has {}", lacks.join(", ")), value),
    }
}
