//! Many instances of one image: memory and disk of each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Failure, World};
use crate::create::{self, Container};
use crate::system::System;
use crate::{Figure, Row, on_disk};

/// What one instance takes, on average.
pub struct Each {
    /// KiB of memory that its processes share out among them.
    pub pss: f64,
    /// KiB of disk.
    pub disk: f64,
    /// Milliseconds to start it, one after the other.
    pub start: f64,
}

pub fn measure(world: &World, system: &System, most: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for count in [1, 10, 100, 1000].into_iter().filter(|&count| count <= most) {
        let containers = containers(world, system, count)?;
        let machines = machines(world, count)?;
        let row = |what: &str, unit, of: &dyn Fn(&Each) -> f64| {
            let side = |name: &str, each: &Each| vec![(name.to_string(), Figure::once(of(each)))];
            let what = format!("{what}, each of {count}");
            Row { what, unit, container: side("runc", &containers), machine: side("rvmm", &machines) }.told()
        };
        rows.push(row("memory (PSS)", "KiB", &|each| each.pss));
        rows.push(row("disk", "KiB", &|each| each.disk));
        rows.push(row("start", "ms", &|each| each.start));
    }
    Ok(rows)
}

pub fn pss(pids: &[u64]) -> f64 {
    let of = |pid: &u64| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:").map(str::to_string));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    pids.iter().map(of).sum::<f64>() / pids.len() as f64
}

fn containers(world: &World, system: &System, count: usize) -> Result<Each, Failure> {
    let lower = create::process(world)?;
    let specification = create::specification(world, true)?;
    run_containers("runc", world, &[&lower, &system.root], &specification, count)
}

/// Runs containers that wait, and looks at all of them together.
pub fn run_containers(
    runtime: &str,
    world: &World,
    layers: &[&Path],
    specification: &Value,
    count: usize,
) -> Result<Each, Failure> {
    let mut running = Vec::new();
    let mut pids = Vec::new();
    let begin = Instant::now();
    let result = (|| -> Result<(), Failure> {
        for number in 0..count {
            let container = Container::new(world, format!("many-{number}"), layers, specification)?;
            let pid = container.directory.join("pid");
            let mut command = container.run(runtime);
            command.arg("--detach").arg("--pid-file").arg(&pid).arg(&container.id);
            let id = container.id.clone();
            running.push((container, id));
            let null = || Stdio::null();
            if !command.stdin(null()).stdout(null()).stderr(null()).status()?.success() {
                return Err(format!("{runtime} does not run a container").into());
            }
            pids.push(fs::read_to_string(pid)?.trim().parse::<u64>()?);
        }
        Ok(())
    })();
    let start = begin.elapsed().as_secs_f64() * 1e3 / count as f64;
    thread::sleep(Duration::from_secs(1));
    // The merged view is the host's files once more: not counted.
    let own = |container: &Container| {
        let part = |name: &str| on_disk(&container.directory.join(name));
        part("upper")
            + part("work")
            + part("config.json")
            + on_disk(&Path::new("/run").join(runtime).join(&container.id))
    };
    let disk = running.iter().map(|(container, _)| own(container)).sum::<f64>() / 1024.0 / count as f64;
    let each = Each { pss: pss(&pids), disk, start };
    for (_, id) in &running {
        let _ = Command::new(runtime).args(["delete", "--force", id]).stderr(Stdio::null()).status();
    }
    result.map(|()| each)
}

fn machines(world: &World, count: usize) -> Result<Each, Failure> {
    if !world.path("many").exists() {
        fs::File::create(world.path("many-disk"))?.set_len(4 << 30)?;
        let disk = format!("{},overlay", world.path("many-disk").display());
        let machine = world.boot("many-source", 256, "hello end=hlt", &["--disk", &disk])?;
        machine.says("OK hello")?;
        world.create("many-source", "many")?;
    }
    let snapshot = world.path("many");
    let begin = Instant::now();
    let report =
        world.json(&["clone", &snapshot.to_string_lossy(), "--name", "m", "-n", &count.to_string()])?;
    let start = begin.elapsed().as_secs_f64() * 1e3 / count as f64;
    let machines = report["machines"].as_array().cloned().unwrap_or_default();
    let pids: Vec<u64> = machines.iter().filter_map(|one| one["pid"].as_u64()).collect();
    thread::sleep(Duration::from_secs(1));
    let disk = pids.iter().map(|&pid| nameless(pid) as f64).sum::<f64>() / 1024.0 / count as f64;
    let each = Each { pss: pss(&pids), disk, start };
    world.stop_all();
    while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(each)
}

/// Bytes on the disk of the files without a name that a process has open: its overlay.
pub fn nameless(pid: u64) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let metadata = files.filter_map(|file| fs::metadata(file.path()).ok());
    metadata.filter(|found| found.is_file() && found.nlink() == 0).map(|found| found.blocks() * 512).sum()
}
