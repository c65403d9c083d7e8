//! How long a machine takes: exec to the first instruction, to the guest's milestones, to the exit status and to the
//! end of the last process, for rvmm and its peers in one loop.
//!
//! ```text
//!   spawn ──► first-run ──► kernel ──► init ──► ready ──► exit ──────────► gone
//!     0       vCPU starts   guest's stamps 0, 1, 2        status is there  no process is left
//! ```
//!
//! The bare-metal guest runs on this host's KVM. Linux runs in the lab (guest/lab) where that KVM has no hardware: there
//! this program runs again, with `--inside`.

#[path = "../common/mod.rs"]
mod common;
mod footprint;
mod measure;
mod monitor;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use monitor::{Guest, MEMORY_MIB, Monitor};
use report::Row;

/// Measures how fast machines start and end
#[derive(Parser)]
struct Args {
    /// Runs of the bare-metal guest for each monitor
    #[arg(long, default_value_t = 40)]
    runs: usize,
    /// Runs of Linux for each monitor
    #[arg(long, default_value_t = 5)]
    linux_runs: usize,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only bare, linux or memory; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Measure this build of rvmm, too; may be repeated
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = named)]
    rvmm: Vec<(String, PathBuf)>,
    /// Measure no peers
    #[arg(long)]
    no_peers: bool,
    /// Boot this Linux kernel instead of the stock one, in both of its forms; may be repeated
    #[arg(long, value_name = "FILE")]
    kernel: Vec<PathBuf>,
    /// This is the run inside the lab
    #[arg(long, hide = true)]
    inside: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn named(text: &str) -> Result<(String, PathBuf), &'static str> {
    let (name, path) = text.split_once('=').ok_or("NAME=PROGRAM is wanted")?;
    Ok((name.into(), std::path::absolute(path).map_err(|_| "not a path")?))
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = std::env::temp_dir().join(format!("rvmm-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    measure::adopt_orphans();
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    let mut figures = json!({});
    if args.inside {
        figures["linux"] = linux(&args, root, &scratch);
    } else {
        if wanted("bare") || wanted("memory") {
            cargo_build(&root.join("guest/bare"))?;
        }
        if wanted("bare") {
            figures["bare"] = bare(&args, root, &scratch);
        }
        if wanted("memory") {
            figures["footprint"] = memory(&args, root, &scratch)?;
        }
        if wanted("linux") {
            figures["linux"] = linux_in_lab(&args, root)?;
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    std::fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn bare_elf(root: &Path) -> PathBuf {
    root.join("guest/bare/target/release/bare")
}

/// rvmm in all builds that are to be measured, and the peers.
fn monitors(args: &Args, guest: &Guest, scratch: &Path) -> Vec<Monitor> {
    let mut monitors = vec![monitor::rvmm("rvmm", Path::new(env!("CARGO_BIN_EXE_rvmm")), guest)];
    monitors.extend(args.rvmm.iter().map(|(name, program)| monitor::rvmm(name, program, guest)));
    if !args.no_peers {
        monitors.extend(monitor::peers(guest, scratch));
    }
    monitors
}

/// Runs all monitors in turn, `runs` times after one that does not count. One that fails is left out.
fn rounds(monitors: Vec<Monitor>, runs: usize, scratch: &Path, limit: Duration) -> Vec<Row> {
    let mut rows: Vec<(Monitor, Row)> = monitors
        .into_iter()
        .map(|monitor| {
            let row = Row { name: monitor.name.clone(), ours: monitor.ours, samples: Vec::new() };
            (monitor, row)
        })
        .collect();
    for round in 0..=runs {
        rows.retain_mut(|(monitor, row)| match measure::run(monitor, scratch, limit) {
            Ok(sample) => {
                row.samples.extend((round > 0).then_some(sample));
                true
            }
            Err(error) => {
                eprintln!("{} is left out: {error}\n  {}", monitor.name, monitor.command.join(" "));
                false
            }
        });
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

fn bare(args: &Args, root: &Path, scratch: &Path) -> Value {
    let guest = Guest::Bare { elf: bare_elf(root), halt: false };
    let rows = rounds(monitors(args, &guest, scratch), args.runs, scratch, Duration::from_secs(20));
    report::table(&format!("Bare-metal guest, {MEMORY_MIB} MiB, {} runs", args.runs), &rows, true)
}

fn memory(args: &Args, root: &Path, scratch: &Path) -> Result<Value, Failure> {
    let guest = Guest::Bare { elf: bare_elf(root), halt: true };
    let mut rows = Vec::new();
    for monitor in monitors(args, &guest, scratch) {
        match footprint::footprint(&monitor, scratch) {
            Ok(footprint) => rows.push((monitor.name, footprint)),
            Err(error) => eprintln!("{} is left out: {error}", monitor.name),
        }
    }
    Ok(report::footprints(&rows, std::fs::metadata(env!("CARGO_BIN_EXE_rvmm"))?.len()))
}

/// Linux from the ELF kernel and from the bzImage.
fn linux(args: &Args, root: &Path, scratch: &Path) -> Value {
    let out = root.join("guest/out");
    let mut kernels = args.kernel.clone();
    if kernels.is_empty() {
        kernels.extend([out.join("lab/bench-vmlinux"), out.join("vmlinuz")]);
    }
    let mut tables = Vec::new();
    for kernel in kernels {
        let title = format!("Linux {}, {MEMORY_MIB} MiB, {} runs", kernel.display(), args.linux_runs);
        let guest = Guest::Linux { kernel, initrd: out.join("initrd.img") };
        let rows =
            rounds(monitors(args, &guest, scratch), args.linux_runs, scratch, Duration::from_secs(120));
        tables.push(report::table(&title, &rows, false));
    }
    tables.into()
}

/// Runs this program again where Linux guests can run.
fn linux_in_lab(args: &Args, root: &Path) -> Result<Value, Failure> {
    let lab = root.join("guest/out/lab");
    std::fs::create_dir_all(&lab)?;
    extract_vmlinux(root)?;
    let figures = lab.join(format!("bench-{}.json", std::process::id()));
    let runs = args.linux_runs.to_string();
    let mut command = Command::new(root.join("guest/lab"));
    command.args(["--auto", "--time-limit", "3000", "--"]).arg(std::env::current_exe()?);
    command.args(["--inside", "--linux-runs", &runs, "--json"]).arg(&figures);
    for (name, program) in &args.rvmm {
        command.arg("--rvmm").arg(format!("{name}={}", program.display()));
    }
    for kernel in &args.kernel {
        command.arg("--kernel").arg(std::path::absolute(kernel)?);
    }
    command.args(args.no_peers.then_some("--no-peers"));
    if !command.current_dir(root).status()?.success() {
        return Err("the run in the lab failed".into());
    }
    let text = std::fs::read_to_string(&figures)?;
    std::fs::remove_file(&figures)?;
    Ok(serde_json::from_str::<Value>(&text)?["linux"].take())
}

/// The ELF kernel inside the stock bzImage.
fn extract_vmlinux(root: &Path) -> Result<(), Failure> {
    let script = ". guest/lib.sh; [ $out/lab/bench-vmlinux -nt $out/vmlinuz ] || \
                  atomically $out/lab/bench-vmlinux vmlinux $out/vmlinuz";
    match Command::new("bash").args(["-ec", script, "guest/bench"]).current_dir(root).status()?.success() {
        true => Ok(()),
        false => Err("no stock kernel: `make guest` fetches it".into()),
    }
}

fn cargo_build(directory: &Path) -> Result<(), Failure> {
    match Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet"])
        .current_dir(directory)
        .status()?
        .success()
    {
        true => Ok(()),
        false => Err("cannot build the bare-metal guest".into()),
    }
}
