//! How fast machines are cloned, one by one and many at once, and what an idle clone occupies.

#[path = "../common/mod.rs"]
mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use common::{Failure, Samples, World, available_mib, load, process_start, target};

/// Measures clones
#[derive(Parser)]
struct Args {
    /// Runs of each measurement but the largest ones
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Most machines at once
    #[arg(long, default_value_t = 1000)]
    most: usize,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    common::build_guest()?;
    let world = World::new()?;
    File::create(world.path("disk"))?.set_len(64 << 20)?;
    let process = process_start(&world, args.runs);
    println!("\nClones of an idle 256 MiB machine, load average {}; p50 (p90)", load());
    println!("a process alone: {} ms", process.cell());
    let mut rows = Vec::new();
    for kind in [Kind::Bare, Kind::Disk, Kind::DiskAndTap] {
        let taps = if kind == Kind::DiskAndTap { Taps::make(100.min(args.most)) } else { Taps(0) };
        if kind == Kind::DiskAndTap && taps.0 == 0 {
            println!("no tap can be made here: nothing with a network is measured");
            continue;
        }
        prepare(&world, kind)?;
        let most = if kind == Kind::DiskAndTap { taps.0 } else { args.most };
        for count in [1, 10, 100, 1000].into_iter().filter(|&count| count <= most) {
            let runs = (args.runs * 5 / count).clamp(1, args.runs);
            rows.push(measure(&world, count, kind, runs)?);
        }
    }
    let targets = targets(&rows, process.percentile(50));
    let figures = json!({ "load": load(), "process_ms": process.json(), "rows": rows, "targets": targets });
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

/// What the machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bare,
    Disk,
    DiskAndTap,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bare => "alone",
            Kind::Disk => "with a disk",
            Kind::DiskAndTap => "with a disk and a tap",
        }
    }
}

/// Taps rvmmb1 to rvmmbN, made before anything is measured as whoever runs many machines makes them.
struct Taps(usize);

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Taps {
    fn make(count: usize) -> Self {
        let made =
            (1..=count).take_while(|number| ip(&["tuntap", "add", &format!("rvmmb{number}"), "mode", "tap"]));
        Taps(made.count())
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for number in 1..=self.0 {
            ip(&["link", "delete", &format!("rvmmb{number}")]);
        }
    }
}

/// The snapshot: a guest that halts.
fn prepare(world: &World, kind: Kind) -> Result<(), Failure> {
    let path = world.path("disk");
    let all = ["--disk", &path.to_string_lossy(), "--net", "tap=rvmmb1"];
    let options = match kind {
        Kind::Bare => &all[..0],
        Kind::Disk => &all[..2],
        Kind::DiskAndTap => &all,
    };
    let machine = world.boot("source", 256, "hello end=hlt", options)?;
    machine.says("OK hello")?;
    world.create("source", "one")?;
    Ok(())
}

fn measure(world: &World, count: usize, kind: Kind, runs: usize) -> Result<Value, Failure> {
    let (mut command, mut inside, mut stop) = (Samples::default(), Samples::default(), Samples::default());
    let mut footprint = Value::Null;
    for run in 0..runs {
        let before = available_mib();
        let snapshot = world.path("one");
        let (path, count) = (snapshot.to_string_lossy(), count.to_string());
        let fixed = ["clone", &path, "--name", "c", "-n", &count];
        let net: &[&str] = if kind == Kind::DiskAndTap { &["--net", "tap=rvmmb%i"] } else { &[] };
        let arguments = [&fixed[..], net].concat();
        let (time, report) = common::timed(|| world.json(&arguments));
        let report = report?;
        command.0.push(time);
        inside.0.push(report["elapsed_us"].as_f64().unwrap_or(f64::NAN) / 1e3);
        let pids: Vec<u64> = report["machines"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["pid"].as_u64())
            .collect();
        if run == 0 {
            thread::sleep(Duration::from_secs(1));
            footprint = occupies(&pids, before.saturating_sub(available_mib()));
        }
        let (time, ()) = common::timed(|| {
            world.stop_all();
            wait_for_end(&pids);
        });
        stop.0.push(time);
    }
    println!(
        "{count:>5} {:22} command {} ms, of it clones {} ms; stop --all --force {} ms; each: CPU {} ms, PSS {} KiB, disk {} \
         KiB, page tables {} KiB, host memory in all {} KiB",
        kind.name(),
        command.cell(),
        inside.cell(),
        stop.cell(),
        footprint["cpu_ms"],
        footprint["pss_kib"],
        footprint["disk_kib"],
        footprint["page_tables_kib"],
        footprint["host_kib"],
    );
    Ok(json!({
        "count": count, "with": kind.name(), "command_ms": command.json(), "clones_ms": inside.json(),
        "stop_ms": stop.json(), "each": footprint,
    }))
}

/// What each of these processes occupies, on average.
fn occupies(pids: &[u64], host_mib: u64) -> Value {
    let number = |file: String, key: &str| -> f64 {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(f64::NAN)
    };
    let mean = |of: &dyn Fn(u64) -> f64| {
        let sum: f64 = pids.iter().map(|&pid| of(pid)).sum();
        (sum / pids.len() as f64 * 10.0).round() / 10.0
    };
    json!({
        "pss_kib": mean(&|pid| number(format!("/proc/{pid}/smaps_rollup"), "Pss:")),
        "page_tables_kib": mean(&|pid| number(format!("/proc/{pid}/status"), "VmPTE:")),
        "threads": mean(&|pid| number(format!("/proc/{pid}/status"), "Threads:")),
        "cpu_ms": mean(&cpu),
        "disk_kib": mean(&|pid| nameless(pid) as f64 / 1024.0),
        "host_kib": (host_mib << 10) as f64 / pids.len() as f64,
    })
}

/// Milliseconds that the threads of a process have run: what a loaded host does not change much.
fn cpu(pid: u64) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    text.filter_map(|text| text.split(' ').next()?.parse::<f64>().ok()).sum::<f64>() / 1e6
}

/// Bytes on the disk of the files without a name that a process has open.
fn nameless(pid: u64) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let metadata = files.filter_map(|file| fs::metadata(file.path()).ok());
    metadata.filter(|found| found.is_file() && found.nlink() == 0).map(|found| found.blocks() * 512).sum()
}

fn wait_for_end(pids: &[u64]) {
    let start = Instant::now();
    // One that waits to be buried by the host's first process is gone, too.
    let gone = |pid: &u64| {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    while !pids.iter().all(gone) && start.elapsed() < Duration::from_secs(120) {
        thread::sleep(Duration::from_millis(5));
    }
}

fn targets(rows: &[Value], process: f64) -> Vec<Value> {
    let find =
        |count: u64, kind: Kind| rows.iter().find(|row| row["count"] == count && row["with"] == kind.name());
    let value = |row: &Value, path: &str| row.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut targets = Vec::new();
    for kind in [Kind::Bare, Kind::Disk, Kind::DiskAndTap] {
        let with = format!(" {}", kind.name());
        if let Some(one) = find(1, kind) {
            let beyond = value(one, "/command_ms/p50") - process;
            targets.push(target(&format!("one clone{with} beyond process start"), beyond, 3.0, "ms"));
        }
        if let Some(many) = find(1000, kind) {
            targets.push(target(&format!("1000 clones{with}"), value(many, "/command_ms/p50"), 2000.0, "ms"));
            targets.push(target(&format!("PSS of each{with}"), value(many, "/each/pss_kib"), 512.0, "KiB"));
            targets.push(target(&format!("disk of each{with}"), value(many, "/each/disk_kib"), 64.0, "KiB"));
        }
    }
    targets
}
