//! How long a machine stands still while it is saved, how long saving and restoring take, and what snapshots occupy.

mod ahead;
#[path = "../common/mod.rs"]
mod common;
mod peers;
mod ways;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use common::{Failure, Samples, World, available_mib, load, occupied, process_start, target};

/// Measures snapshots and restores
#[derive(Parser)]
struct Args {
    /// Snapshots of each machine, restores of each snapshot
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Largest machine that is saved, in MiB
    #[arg(long, default_value_t = 1024)]
    most: u64,
    /// Measure only capture, restore, peers, ahead or ways; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
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
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    let mut figures = json!({ "load": load() });
    if wanted("capture") {
        figures["capture"] = capture(&world, &args)?;
    }
    if wanted("restore") {
        figures["restore"] = restore(&world, args.runs)?;
    }
    if wanted("peers") {
        figures["peers"] = peers::measure(&world, args.runs)?;
    }
    if wanted("ahead") {
        figures["ahead"] = ahead::measure(&world, args.runs)?;
    }
    if wanted("ways") {
        figures["ways"] = ways::measure(256, args.runs)?;
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

/// A guest that writes so many pages and halts: long enough to be saved meanwhile, with a whole round after that.
fn dirty(mib: u64, percent: u64) -> String {
    // In one piece: below the hole for devices.
    let size = (mib - 16).min(3056);
    let pages = (size * 256 * percent / 100).max(1);
    format!("dirty pages={pages} mib={size} rounds={} end=hlt", (400_000 / pages).max(3))
}

fn capture(world: &World, args: &Args) -> Result<Value, Failure> {
    println!("\nCapture, load average {}; p50 (p90) in milliseconds", load());
    println!("{:>10}{:>8}{:>10}{:>18}{:>18}{:>12}", "memory", "dirty", "", "pause", "command", "MiB on disk");
    println!(
        "first: the first capture of a machine that was booted; booted: its later ones; restored: another machine's"
    );
    println!("each followed by the parts of the pause, p50: vCPUs and devices stop, state, disks, fork");
    let mut rows = Vec::new();
    let mut small = f64::NAN;
    for mib in [256, 1024, 4096].into_iter().filter(|&mib| mib <= args.most && available_mib() > 2 * mib) {
        for percent in [0, 1, 10, 100] {
            let machine = world.boot("source", mib, &dirty(mib, percent), &[])?;
            machine.says("dirty: ready")?;
            // The guest writes meanwhile, and each huge page that it writes to becomes small ones.
            let first = milliseconds(&world.create("source", "early")?["pause_us"]);
            machine.says("OK dirty")?;
            let booted = captures(world, args.runs)?;
            drop(machine);
            // Whatever a restored machine writes is in small pages.
            let early = world.path("early");
            let machine = world.machine("source", &["restore", &early.to_string_lossy()])?;
            match percent {
                0 => world.answers("source")?,
                _ => machine.says("OK dirty")?,
            }
            let restored = captures(world, args.runs)?;
            if mib == 256 {
                small = booted.pause.percentile(50).max(small);
            }
            println!("{mib:>6} MiB{percent:>6} %{:>10}{first:>11.2}", "first");
            for (kind, Captures { pause, parts, command, disk }) in
                [("booted", booted), ("restored", restored)]
            {
                println!(
                    "{mib:>6} MiB{percent:>6} %{kind:>10}{:>18}{:>18}{:>12.1}   {}",
                    pause.cell(),
                    command.cell(),
                    disk as f64 / (1 << 20) as f64,
                    parts.each_ref().map(|part| format!("{:.2}", part.percentile(50))).join(" + "),
                );
                rows.push(json!({
                    "mib": mib, "dirty_percent": percent, "memory": kind,
                    "pause_ms": pause.json(), "first_pause_ms": first, "pause_parts_ms": parts_json(&parts), "command_ms": command.json(), "disk_bytes": disk,
                }));
            }
        }
    }
    let target = target("pause at 256 MiB, booted, the worst of all", small, 5.0, "ms");
    Ok(json!({ "rows": rows, "target": target }))
}

/// What a machine stands still for.
const PARTS: [&str; 4] = ["stop", "state", "disks", "fork"];

/// Milliseconds of the pause, of its parts and of the whole command, and what the last snapshot occupies.
#[derive(Default)]
struct Captures {
    pause: Samples,
    parts: [Samples; 4],
    command: Samples,
    disk: u64,
}

fn milliseconds(microseconds: &Value) -> f64 {
    microseconds.as_f64().unwrap_or(f64::NAN) / 1e3
}

fn parts_json(parts: &[Samples; 4]) -> Value {
    PARTS.iter().zip(parts).map(|(name, part)| (name.to_string(), part.json())).collect()
}

fn captures(world: &World, runs: usize) -> Result<Captures, Failure> {
    let mut all = Captures::default();
    for _ in 0..runs {
        let (time, report) = common::timed(|| world.create("source", "one"));
        let report = report?;
        all.pause.0.push(milliseconds(&report["pause_us"]));
        for (name, part) in PARTS.iter().zip(&mut all.parts) {
            part.0.push(milliseconds(&report["pause_parts_us"][name]));
        }
        all.command.0.push(time);
    }
    all.disk = occupied(&world.path("one"));
    Ok(all)
}

fn restore(world: &World, runs: usize) -> Result<Value, Failure> {
    let process = process_start(world, runs.max(20));
    println!(
        "\nRestore, load average {}; p50 (p90) in milliseconds from exec to the first run of the guest",
        load()
    );
    println!("{:>22} {}", "a process alone", process.cell());
    let (mut rows, mut worst) = (Vec::new(), 0.0_f64);
    for mib in [256, 1024, 2048, 4096, 8192] {
        for pages in [256, 16384] {
            let test = format!("dirty pages={pages} mib={} rounds=1 end=hlt", (mib - 16).min(2048));
            let machine = world.boot("source", mib, &test, &[])?;
            machine.says("OK dirty")?;
            world.create("source", "one")?;
            drop(machine);
            let times = restores(world, runs)?;
            println!("{mib:>6} MiB{:>8} MiB {}", pages / 256, times.cell());
            worst = worst.max(times.percentile(50));
            rows.push(json!({ "mib": mib, "data_mib": pages / 256, "first_run_ms": times.json() }));
        }
    }
    let beyond = worst - process.percentile(50);
    let target = target("exec to first run beyond process start, the worst of all", beyond, 3.0, "ms");
    Ok(json!({ "rows": rows, "process_ms": process.json(), "target": target }))
}

/// Milliseconds from exec to the first run.
fn restores(world: &World, runs: usize) -> Result<Samples, Failure> {
    let (one, stamps) = (world.path("one"), world.in_memory("stamps"));
    let mut times = Samples::default();
    for _ in 0..runs {
        let _ = fs::remove_file(&stamps);
        let mut command = world.rvmm();
        command.arg("restore").arg(&one).args(["--name", "copy", "--console", "off", "--stop-timeout", "0"]);
        command.arg("--boot-timer");
        command.arg(&stamps).stdout(Stdio::null()).stderr(Stdio::null());
        let start = monotonic();
        let mut child = command.spawn()?;
        // Nobody asks while it is measured, if the host is not an emulated one.
        let runs = || world.json(&["inspect", "copy"]).is_ok_and(|told| told[0]["state"] == "Running");
        while {
            std::thread::sleep(Duration::from_millis(150));
            !runs() && child.try_wait()?.is_none()
        } {}
        // SAFETY: a call without pointers; the child has not been waited for, so the number is its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        child.wait()?;
        let text = fs::read_to_string(&stamps)?;
        let first: Value = serde_json::from_str(text.lines().next().ok_or("no stamps")?)?;
        times.0.push((first["monotonic_ns"].as_f64().unwrap_or(f64::NAN) - start) / 1e6);
    }
    let _ = fs::remove_file(&stamps);
    Ok(times)
}

/// Nanoseconds of CLOCK_MONOTONIC.
fn monotonic() -> f64 {
    rvmm::sys::clock::monotonic(std::time::Instant::now()).as_nanos() as f64
}
