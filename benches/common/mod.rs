//! What the benchmarks of snapshots and clones share: machines in a directory of their own, percentiles, tables.

// Each benchmark uses its own part of this.
#![allow(dead_code)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub type Failure = Box<dyn std::error::Error>;

/// A directory with machines and snapshots; machines end with it. The runtime directory is in memory, as it is where
/// rvmm puts it by itself.
pub struct World(PathBuf, PathBuf);

impl World {
    pub fn new() -> Result<Self, Failure> {
        let path = env::temp_dir().join(format!("rvmm-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        let memory = Path::new("/dev/shm");
        let run = if memory.is_dir() {
            memory.join(format!("rvmm-{}", std::process::id()))
        } else {
            path.join("run")
        };
        Ok(World(path, run))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in memory: one on a disk waits for whatever else is written there.
    pub fn in_memory(&self, name: &str) -> PathBuf {
        self.1.with_extension(name)
    }

    pub fn rvmm(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvmm"));
        command.arg("--runtime-dir").arg(&self.1).stdin(Stdio::null());
        command
    }

    /// What a command that succeeds prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let output = self.rvmm().arg("--json").args(arguments).output()?;
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout)?),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        }
    }

    /// Starts a command whose console is the file `name`.log.
    pub fn machine(&self, name: &str, arguments: &[&str]) -> Result<Machine, Failure> {
        let log = self.path(&format!("{name}.log"));
        let _ = fs::remove_file(&log);
        let console = format!("file={}", log.display());
        let mut command = self.rvmm();
        command.args(arguments).args(["--name", name, "--console", &console, "--stop-timeout", "0"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Machine { child, log })
    }

    /// The API of a machine.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.1.join(name).join("api.sock")
    }

    /// Boots the bare-metal guest with `test`.
    pub fn boot(&self, name: &str, mib: u64, test: &str, more: &[&str]) -> Result<Machine, Failure> {
        let (kernel, memory) = (bare(), format!("{mib}M"));
        let kernel = kernel.to_string_lossy();
        let cmdline = format!("test={test}");
        let fixed = ["--kernel", &*kernel, "--net", "none", "--memory", &memory, "--cmdline-only", &cmdline];
        self.machine(name, &[&fixed[..], more].concat())
    }

    /// Waits until a machine that was started can be asked.
    pub fn answers(&self, name: &str) -> Result<(), Failure> {
        let start = Instant::now();
        while let Err(error) = self.json(&["inspect", name]) {
            if start.elapsed() > Duration::from_secs(30) {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Saves a machine; what rvmm reports.
    pub fn create(&self, name: &str, target: &str) -> Result<Value, Failure> {
        let target = self.path(target);
        let _ = fs::remove_dir_all(&target);
        self.json(&["snapshot", "create", name, &target.to_string_lossy()])
    }

    pub fn stop_all(&self) {
        let _ = self.rvmm().args(["stop", "--all", "--force"]).stdout(Stdio::null()).status();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_all();
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_dir_all(&self.1);
    }
}

/// A machine in the foreground of a process of its own. It is killed when this value is dropped.
pub struct Machine {
    pub child: Child,
    log: PathBuf,
}

impl Machine {
    /// Waits until the guest has said `text`.
    pub fn says(&self, text: &str) -> Result<(), Failure> {
        self.says_times(text, 1)
    }

    /// Waits until it has said it so many times.
    pub fn says_times(&self, text: &str, times: usize) -> Result<(), Failure> {
        let start = Instant::now();
        while fs::read_to_string(&self.log).unwrap_or_default().matches(text).count() < times {
            if start.elapsed() > Duration::from_secs(300) {
                return Err(format!("the guest did not say {text:?}").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn bare() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/bare/target/release/bare")
}

pub fn build_guest() -> Result<(), Failure> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/bare");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet"])
        .current_dir(directory)
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err("cannot build the bare-metal guest".into()),
    }
}

/// The program that an environment variable names, or the one on PATH.
pub fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// Bytes that the files of a directory occupy on the disk.
pub fn occupied(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
}

/// MiB of memory that the host could still give.
pub fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// The host's load average of the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}

/// Values of one thing that was measured several times.
#[derive(Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The value below which `percent` of them are.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut values = self.0.clone();
        values.sort_by(f64::total_cmp);
        values.get((values.len().saturating_sub(1) * percent + 50) / 100).copied().unwrap_or(f64::NAN)
    }

    pub fn cell(&self) -> String {
        format!("{:.2} ({:.2})", self.percentile(50), self.percentile(90))
    }

    pub fn json(&self) -> Value {
        json!({ "p50": self.percentile(50), "p90": self.percentile(90), "runs": self.0.len() })
    }
}

/// Prints a line that says how a figure compares with what was aimed at.
pub fn target(what: &str, found: f64, wanted: f64, unit: &str) -> Value {
    let ratio = found / wanted;
    let word = if ratio <= 1.0 { "met" } else { "missed" };
    println!("{what}: {found:.3} {unit}, target {wanted} {unit}: {ratio:.2} of it, {word}");
    json!({ "what": what, "found": found, "target": wanted, "unit": unit, "ratio": ratio })
}

/// Milliseconds that `work` takes, with what it gives.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64() * 1e3, result)
}

/// Milliseconds of starting rvmm for nothing: what a process costs here.
pub fn process_start(world: &World, runs: usize) -> Samples {
    let once = |_| timed(|| world.rvmm().arg("--version").stdout(Stdio::null()).status()).0;
    Samples((0..runs).map(once).collect())
}
