//! Kernels of Debian's and Ubuntu's packages, downloaded by apt, which checks them, and unpacked without being installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::output::Failure;
use crate::image::Store;
use crate::sys::scratch::Scratch;

/// What stands for the newest kernel for machines in clouds, by distribution.
const USUAL: [&str; 4] =
    ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64"];

/// A package's files, as long as this lives.
pub struct Unpacked {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root of a system with its modules.
    pub modules: PathBuf,
    _scratch: Scratch,
}

/// Downloads and unpacks a kernel package, or the usual one.
pub fn fetch(package: Option<&str>, store: &Store) -> Result<Unpacked, Failure> {
    let scratch = store.scratch().map_err(Failure::refused)?;
    let package = resolve(package)?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package).trim_start_matches("unsigned-");
    let root = scratch.path().join("root");
    // Ubuntu has the modules in a package of their own.
    let beside = [format!("linux-modules-{version}"), format!("linux-modules-extra-{version}")];
    for part in std::iter::once(&package).chain(beside.iter().filter(|part| is_known(part))) {
        download(part, scratch.path())?;
    }
    for entry in fs::read_dir(scratch.path()).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|end| end == "deb") {
            let deb = entry.path();
            run("dpkg-deb", &["-x".as_ref(), deb.as_os_str(), root.as_os_str()], None)?;
        }
    }
    let kernel = fs::read_dir(root.join("boot")).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_kernel = |path: &PathBuf| {
        path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    };
    match kernel.into_iter().find(is_kernel) {
        Some(kernel) => Ok(Unpacked { kernel, modules: root, _scratch: scratch }),
        None => Err(Failure::refused(format!("Package {package} has no kernel"))),
    }
}

/// The package with the kernel itself, which the wanted one may only depend on.
fn resolve(wanted: Option<&str>) -> Result<String, Failure> {
    let all: Vec<&str> = wanted.map_or(USUAL.to_vec(), |wanted| vec![wanted]);
    if all.iter().any(|name| {
        name.is_empty()
            || !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.:~_".contains(&c))
            || name.starts_with('-')
    }) {
        return Err(Failure::usage(format!("`{}` is no name of a package", all[0])));
    }
    for name in &all {
        let depends = run("apt-cache", &["depends".as_ref(), name.as_ref()], None).unwrap_or_default();
        let is_image = |line: &str| {
            let package = line.trim().strip_prefix("Depends: ")?;
            package.starts_with("linux-image-").then(|| package.to_string())
        };
        if let Some(package) = depends.lines().find_map(is_image) {
            return Ok(package);
        }
        if is_known(name) {
            return Ok(name.to_string());
        }
    }
    // Whether there is an apt at all.
    run("apt-cache", &["--version".as_ref()], None)?;
    Err(Failure::refused(format!("apt knows no package {}: `apt-get update` may help", all.join(" or "))))
}

fn is_known(package: &str) -> bool {
    run("apt-cache", &["show".as_ref(), package.as_ref()], None)
        .is_ok_and(|text| text.contains("\nFilename: "))
}

/// Downloads a package into a directory.
fn download(package: &str, to: &Path) -> Result<(), Failure> {
    // The sandbox's user could not write there.
    let arguments = ["-qq", "-o", "APT::Sandbox::User=root", "download", package];
    run("apt-get", &arguments.map(AsRef::as_ref), Some(to)).map(drop)
}

/// Runs a program to its good end; gives what it printed.
fn run(program: &str, arguments: &[&std::ffi::OsStr], directory: Option<&Path>) -> Result<String, Failure> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C");
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::refused(format!(
            "There is no {program} here, as Debian and Ubuntu have it: say `rvmm kernel add FILE` with your distribution's kernel"
        )),
        _ => Failure::refused(format!("Cannot run {program}: {error}")),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().find(|line| line.starts_with("E:")).or(said.lines().last()).unwrap_or("it failed");
    Err(Failure::refused(format!("{program} says: {why}")))
}
