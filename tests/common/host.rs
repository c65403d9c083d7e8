//! What the host offers; a test that needs more is skipped, with the reason.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The kernel that `make guest` fetches.
pub const STOCK_KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/out/vmlinuz");

/// `Err` says in words what is missing.
pub type Offer<T = ()> = Result<T, String>;

/// Virtual machines at all.
pub fn kvm() -> Offer {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(|error| format!("no /dev/kvm: {error}"))
}

/// So many vCPUs in one machine.
pub fn vcpus(count: u32) -> Offer {
    let kvm = rvmm::kvm::open().map_err(|error| error.to_string())?;
    rvmm::kvm::check_vcpus(&kvm, count).map_err(|error| error.to_string())
}

/// Virtual machines fast and whole enough for Linux: KVM with hardware behind it, or the word of `guest/test-linux`.
pub fn linux() -> Offer {
    kvm()?;
    let hardware = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = hardware.split_whitespace().any(|word| word == "svm" || word == "vmx");
    match hardware || std::env::var_os("RVMM_LINUX").is_some() {
        true => Ok(()),
        false => Err("KVM has no hardware behind it here; guest/test-linux runs this test in the lab".into()),
    }
}

/// Whoever may do everything.
pub fn root() -> Offer {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        true => Ok(()),
        false => Err("not root".into()),
    }
}

/// A program, found on PATH or where administrators have theirs.
pub fn program(name: &str) -> Offer<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places =
        path.split(':').chain(["/usr/sbin", "/sbin"]).map(|place| PathBuf::from(place).join(name));
    places.find(|path| path.is_file()).ok_or_else(|| format!("no {name} on PATH"))
}

/// Runs a program to its good end; gives what it printed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let path = self::program(program).expect("a program that the test has asked for");
    let output =
        Command::new(path).args(arguments).stdin(Stdio::null()).output().expect("a program that starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may have any letters.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&child| parent(child) == Some(pid))
        .collect()
}

/// Whether the process runs; one that waits to be buried does not.
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Set in the process that a test runs itself in.
const INSIDE: &str = "RVMM_TEST_INSIDE";

/// Runs the test named `test` (its full path) again in a network of its own, where it may make taps. True in that
/// process; false outside, when it is done.
#[track_caller]
pub fn in_own_network(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this program");
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--net", "--mount", "--"]).arg(program);
    let again = again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null()).output();
    let again = again.expect("unshare, which was looked for");
    let (out, err) = (String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&again.stderr));
    assert!(again.status.success() && out.contains("1 passed"), "in the network:\n{out}\n{err}");
    false
}
