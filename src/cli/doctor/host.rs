//! What the host offers besides KVM: network, I/O, memory.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use io_uring::IoUring;
use serde_json::{Value, json};

use super::Finding;
use super::Status::{Ok, Warn};
use crate::sys::{process, tap, user};

/// Everything besides KVM.
pub fn checks() -> Vec<Finding> {
    vec![tap(), passt(), io_uring(), userfaultfd(), memory(), overcommit(), huge_pages(), transparent()]
}

/// A file of /proc or /sys; empty where the kernel does not have it.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn tap() -> Finding {
    let warn = |says: String| Finding::new("tap", Warn, says, false);
    let tun = match tap::open() {
        Result::Ok(tun) => tun,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return warn("There is no /dev/net/tun: no --net tap=NAME".into()).fix("sudo modprobe tun");
        }
        Err(error) => {
            return warn(format!("/dev/net/tun does not open ({}): no --net tap=NAME", error.kind()))
                .fix("sudo chmod 666 /dev/net/tun");
        }
    };
    // The kernel puts a number in the place of %d. The tap is gone when `tun` is closed.
    match tap::attach(&tun, "rvmm-test%d", 12) {
        Result::Ok(()) => {
            Finding::new("tap", Ok, "This user may make taps: --net tap=NAME makes what it needs", true)
        }
        Err(error) => {
            warn(format!("This user may not make taps ({error}), but may use one that is made for it"))
                .fix("sudo ip tuntap add tap0 mode tap user $USER && sudo ip link set tap0 up")
        }
    }
}

fn passt() -> Finding {
    let Some(path) = process::find("passt") else {
        let says = "passt is not installed: no --net user, the network for everyone";
        return Finding::new("passt", Warn, says, Value::Null).fix("sudo apt-get install passt");
    };
    let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    // The first line is `passt VERSION`.
    match said.lines().next().and_then(|line| line.strip_prefix("passt ")) {
        Some(version) => {
            let says = "passt is there: --net user works without privileges";
            Finding::new("passt", Ok, says, json!({ "path": path, "version": version }))
        }
        None => {
            let says = format!("{} does not tell its version: is it really passt?", path.display());
            let value = json!({ "path": path, "version": null });
            Finding::new("passt", Warn, says, value).fix("sudo apt-get install --reinstall passt")
        }
    }
}

fn io_uring() -> Finding {
    match IoUring::new(2) {
        Result::Ok(_) => Finding::new("io-uring", Ok, "Disks use io_uring", true),
        Err(error) => {
            let says = format!("io_uring is not offered ({}): disks use slower system calls", error.kind());
            let finding = Finding::new("io-uring", Warn, says, false);
            match read("/proc/sys/kernel/io_uring_disabled").as_str() {
                "" | "0" => finding,
                _ => finding.fix("sudo sysctl kernel.io_uring_disabled=0"),
            }
        }
    }
}

fn userfaultfd() -> Finding {
    let device = fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let everyone = read("/proc/sys/vm/unprivileged_userfaultfd") == "1";
    if device || everyone || user::effective() == 0 {
        return Finding::new(
            "userfaultfd",
            Ok,
            "Memory can be filled when it is used: restore --memory-mode lazy",
            true,
        );
    }
    let says = "userfaultfd is not for this user: no restore --memory-mode lazy";
    Finding::new("userfaultfd", Warn, says, false).fix("sudo sysctl vm.unprivileged_userfaultfd=1")
}

/// A number of /proc/meminfo: KiB, or pages for huge pages.
fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn memory() -> Finding {
    let text = read("/proc/meminfo");
    let (total, available) = (meminfo(&text, "MemTotal") >> 10, meminfo(&text, "MemAvailable") >> 10);
    let value = json!({ "total_mib": total, "available_mib": available });
    let says = format!("{available} MiB of {total} MiB are available");
    match available >= 512 {
        true => Finding::new("memory", Ok, says, value),
        false => {
            Finding::new("memory", Warn, format!("{says}: too little for more than a small machine"), value)
        }
    }
}

fn overcommit() -> Finding {
    let mode: u64 = read("/proc/sys/vm/overcommit_memory").parse().unwrap_or(0);
    match mode {
        2 => {
            let says = "Memory is never promised twice: all RAM of a machine must be free when it starts";
            Finding::new("overcommit", Warn, says, mode).fix("sudo sysctl vm.overcommit_memory=0")
        }
        _ => Finding::new("overcommit", Ok, "A machine takes only the memory that its guest touches", mode),
    }
}

fn huge_pages() -> Finding {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let count = |file: &str| read(&format!("{POOL}/{file}")).parse::<u64>().unwrap_or(0);
    let (reserved, free) = (count("nr_hugepages"), count("free_hugepages"));
    let value = json!({ "reserved_2m": reserved, "free_2m": free });
    if !Path::new(POOL).exists() {
        return Finding::new(
            "huge-pages",
            Warn,
            "The kernel has no huge pages of 2 MiB: no --huge-pages",
            value,
        );
    }
    if reserved == 0 {
        // Nobody needs them who does not ask for them.
        let says = "No huge pages are reserved: --huge-pages needs some";
        return Finding::new("huge-pages", Ok, says, value)
            .fix("sudo sysctl vm.nr_hugepages=128   # 256 MiB");
    }
    let says =
        format!("{free} of {reserved} reserved huge pages are free: {} MiB for --huge-pages", free * 2);
    Finding::new("huge-pages", Ok, says, value)
}

fn transparent() -> Finding {
    const MODE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let modes = read(MODE);
    let mode =
        modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("none", |(mode, _)| mode);
    match mode {
        "always" | "madvise" => {
            let says = format!("Transparent huge pages are on ({mode}): RAM is faster to fill and to use");
            Finding::new("thp", Ok, says, mode)
        }
        "never" => {
            let says = "Transparent huge pages are off: RAM is slower to fill and to use";
            Finding::new("thp", Warn, says, mode).fix(format!("echo madvise | sudo tee {MODE}"))
        }
        _ => Finding::new("thp", Warn, "The kernel has no transparent huge pages", mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24604168 kB\nMemAvailable:   100 kB\nHugePages_Free:       3\n";
        assert_eq!(meminfo(text, "MemTotal"), 24_604_168);
        assert_eq!(meminfo(text, "HugePages_Free"), 3);
        assert_eq!((meminfo(text, "Mem"), meminfo("", "MemTotal")), (0, 0));
    }
}
