//! Containers beside machines with Linux, on one ground: here where KVM has hardware behind it, else all of it in the lab.
//!
//! ```text
//!   here:     one Debian ──► rvmm import ──► a store        measure ──► guest/lab ──► this program, --inside
//!   ground:   runc, crun over overlay mounts of that Debian      rvmm run, commit, clone of the store's image
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Failure, Samples, World, timed};
use crate::create::{Container, specification};
use crate::many::{Each, nameless, pss, run_containers};
use crate::system::{System, run};
use crate::{Figure, Row};

/// What says that a process runs, and goes on saying it.
const UP: &str = "up-and-running";
/// The image.
const IMAGE: &str = "debian:1";
/// The image of a machine that waits.
const IDLE: &str = "debian:hot";
/// Bytes that are written before each capture.
const CHANGE: usize = 1_000_000;

/// What the ground needs, made where it is quick: it lies where the lab can see it.
fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/out/cache/bench-store")
}

/// Makes the store, and measures on a ground where Linux guests run.
pub fn measure(world: &World, system: &System, runs: usize, most: usize) -> Result<Vec<Row>, Failure> {
    let store = place();
    if !store.join("ready").exists() {
        let _ = fs::remove_dir_all(&store);
        let text = store.to_string_lossy().into_owned();
        let rvmm = |arguments: &[&str]| run(world.rvmm().args(["--store", &text]).args(arguments));
        rvmm(&["import", &system.root.to_string_lossy(), IMAGE, "--size", "2G"])?;
        let made = |name: &str| made(name).to_string_lossy().into_owned();
        rvmm(&["kernel", "add", &made("vmlinuz"), "--modules", &made("modules")])?;
        fs::write(store.join("ready"), "")?;
    }
    let report = world.path("linux.json");
    let report = report.file_name().ok_or("a name")?;
    // Where both this machine and the lab can write.
    let report = made("lab").join(report);
    run_inside(runs, most, &report)?;
    let rows: Value = serde_json::from_slice(&fs::read(&report)?)?;
    fs::remove_file(&report)?;
    let rows = rows["rows"].as_array().ok_or("no rows")?;
    rows.iter().map(|row| Row::of_json(row).ok_or_else(|| "no row".into())).collect()
}

fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/out").join(name)
}

fn run_inside(runs: usize, most: usize, report: &Path) -> Result<(), Failure> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/lab");
    let mut command = Command::new(lab);
    command.args(["--auto", "--time-limit", "7200", "--"]).arg(std::env::current_exe()?);
    command
        .args(["--inside", "--runs", &runs.to_string(), "--most", &most.to_string(), "--json"])
        .arg(report);
    match command.status()?.success() {
        true => Ok(()),
        false => Err("the measurement on the ground of Linux guests fails".into()),
    }
}

/// What is measured there.
pub fn inside(world: &World, root: &Path, runs: usize, most: usize) -> Result<Vec<Row>, Failure> {
    let ground = Ground { world, store: place().to_string_lossy().into_owned(), root };
    let mut rows = ground.create(runs)?;
    rows.push(ground.capture(runs)?);
    // What the lab's memory takes.
    let counts: Vec<usize> = [1, 10, 100].into_iter().filter(|&count| count <= most).collect();
    rows.extend(ground.many(&counts)?);
    Ok(rows)
}

struct Ground<'a> {
    world: &'a World,
    store: String,
    root: &'a Path,
}

impl Ground<'_> {
    fn rvmm(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.rvmm();
        command.args(["--store", &self.store]).args(arguments);
        command
    }

    fn does(&self, arguments: &[&str]) -> Result<(), Failure> {
        run(&mut self.rvmm(arguments))
    }

    /// A machine in the background that has said that it runs, with a command that goes on.
    fn up(&self, name: &str, command: &str) -> Result<(), Failure> {
        let machine = ["run", "-d", "--net", "none", "--name", name, IMAGE, "--", "sh", "-c", command];
        self.does(&machine)?;
        loop {
            let logs = self.rvmm(&["logs", name]).output()?;
            if String::from_utf8_lossy(&logs.stdout).contains(UP) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        self.does(&["stop", "--force", name])?;
        self.does(&["rm", name])
    }

    /// From nothing to a process that has said something, and to the end.
    fn create(&self, runs: usize) -> Result<Vec<Row>, Failure> {
        let (mut first, mut whole) = (Table::default(), Table::default());
        let mut spec = specification(self.world, false)?;
        spec["process"]["args"] = vec!["sh", "-c", &format!("echo {UP}")].into();
        // It says so for ever: the first word after it goes on comes at once.
        self.up("warm-source", &format!("while :; do echo {UP}; sleep 0.02; done"))?;
        self.does(&["commit", "warm-source", "debian:warm", "--warm"])?;
        self.remove("warm-source")?;
        let mut left_out = Vec::new();
        for round in 0..=runs {
            for runtime in ["runc", "crun"] {
                if left_out.contains(&runtime) {
                    continue;
                }
                match self.container(runtime, &spec, round) {
                    Ok(times) if round > 0 => add(&mut first, &mut whole, runtime, times),
                    Ok(_) => {}
                    Err(error) => {
                        println!("{runtime} is left out: {error}");
                        left_out.push(runtime);
                    }
                }
            }
            let echo = format!("echo {UP}");
            let cold = ["run", "--rm", "--net", "none", IMAGE, "--", "sh", "-c", &echo];
            let cold = first_word(Instant::now(), &mut self.rvmm(&cold), || Ok(()))?;
            let name = format!("warm-{round}");
            let warm = ["run", "--rm", "--name", &name, "debian:warm"];
            let warm =
                first_word(Instant::now(), &mut self.rvmm(&warm), || self.does(&["stop", "--force", &name]))?;
            if round > 0 {
                add(&mut first, &mut whole, "rvmm run", cold);
                add(&mut first, &mut whole, "rvmm run, warm", warm);
            }
        }
        let row = |what: &str, table| row(what, "ms", table).told();
        Ok(vec![
            row("Linux: creation to the first word of a process", first),
            row("Linux: creation, run and removal", whole),
        ])
    }

    fn container(&self, runtime: &str, spec: &Value, round: usize) -> Result<(f64, f64), Failure> {
        let start = Instant::now();
        let container = Container::new(self.world, format!("{runtime}-{round}"), &[self.root], spec)?;
        let (first, _) = first_word(start, container.run(runtime).arg(&container.id), || Ok(()))?;
        drop(container);
        Ok((first, milliseconds(start)))
    }

    /// A version of a machine that runs, after a change.
    fn capture(&self, runs: usize) -> Result<Row, Failure> {
        let mut table = Table::default();
        let upper = self.world.path("captured");
        fs::create_dir_all(&upper)?;
        // One that does nothing: where processors are emulated, it would take the time from what is measured.
        self.up("source", &format!("echo {UP}; exec sleep 1000000"))?;
        for round in 0..=runs {
            // A container's version is the archive of its upper directory, packed: less than any tool does.
            let data = crate::common::noise::noise(round as u64 + 900, CHANGE);
            fs::write(upper.join("data"), &data)?;
            let pack = || crate::system::pack(&upper, &self.world.path("captured.tar.gz"));
            let (packed, result) = timed(pack);
            result?;
            let write = format!("head -c {CHANGE} /dev/urandom >/srv/data");
            self.does(&["exec", "source", "sh", "-c", &write])?;
            let tag = format!("debian:v{round}");
            let (disk, report) = timed(|| self.report(&["commit", "source", &tag, "-m", "captured"]));
            let pause = report?["pause_us"].as_f64().unwrap_or(f64::NAN) / 1e3;
            let (warm, result) = timed(|| self.does(&["commit", "source", IDLE, "--warm"]));
            result?;
            if round > 0 {
                put(&mut table, "tar and gzip of the upper directory", packed);
                put(&mut table, "rvmm commit", disk);
                put(&mut table, "rvmm commit, pause", pause);
                put(&mut table, "rvmm commit --warm", warm);
            }
        }
        self.remove("source")?;
        Ok(row("Linux: capture of 1 MB of changes", "ms", table).told())
    }

    fn report(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let output = self.rvmm(&["--json"]).args(arguments).output()?;
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout)?),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        }
    }

    /// Many instances of the warm image that was captured last, beside containers that wait.
    fn many(&self, counts: &[usize]) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let mut spec = specification(self.world, true)?;
        spec["process"]["args"] = vec!["sleep", "1000000"].into();
        for &count in counts {
            let mut containers = Vec::new();
            for runtime in ["runc", "crun"] {
                match run_containers(runtime, self.world, &[self.root], &spec, count) {
                    Ok(each) => containers.push((runtime, each)),
                    Err(error) => println!("{runtime} is left out: {error}"),
                }
            }
            let (time, result) = timed(|| -> Result<(), Failure> {
                for number in 0..count {
                    let name = format!("many-{number}");
                    self.does(&["run", "-d", "--rm", "--name", &name, IDLE])?;
                }
                Ok(())
            });
            result?;
            let told = self.report(&["ps"])?;
            let pids = told.as_array().into_iter().flatten().filter_map(|one| one["pid"].as_u64());
            let pids: Vec<u64> = pids.collect();
            let disk = pids.iter().map(|&pid| nameless(pid) as f64).sum::<f64>() / 1024.0 / count as f64;
            let each = Each { pss: pss(&pids), disk, start: time / count as f64 };
            let row = |what: &str, unit, of: &dyn Fn(&Each) -> f64| {
                let figure = |name: &str, each| (name.to_string(), Figure::once(of(each)));
                let container = containers.iter().map(|(name, each)| figure(name, each)).collect();
                let machine = vec![figure("rvmm run -d, warm", &each)];
                Row { what: format!("Linux: {what}, each of {count}"), unit, container, machine }.told()
            };
            rows.push(row("memory (PSS)", "KiB", &|each| each.pss));
            rows.push(row("disk", "KiB", &|each| each.disk));
            rows.push(row("start", "ms", &|each| each.start));
            self.does(&["stop", "--all", "--force"])?;
        }
        Ok(rows)
    }
}

/// Runs a command: milliseconds from `start` until it says [`UP`], and, when `then` was done, to its end.
fn first_word(
    start: Instant,
    command: &mut Command,
    then: impl FnOnce() -> Result<(), Failure>,
) -> Result<(f64, f64), Failure> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("a pipe")?).lines();
    let said = lines.any(|line| line.is_ok_and(|line| line.contains(UP)));
    let first = milliseconds(start);
    if !said {
        let output = child.wait_with_output()?;
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string().into());
    }
    then()?;
    lines.for_each(drop);
    child.wait()?;
    Ok((first, milliseconds(start)))
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

type Table = Vec<(String, Samples)>;

fn put(table: &mut Table, name: &str, value: f64) {
    match table.iter_mut().find(|(known, _)| known == name) {
        Some((_, samples)) => samples.0.push(value),
        None => table.push((name.into(), Samples(vec![value]))),
    }
}

fn add(first: &mut Table, whole: &mut Table, name: &str, times: (f64, f64)) {
    put(first, name, times.0);
    put(whole, name, times.1);
}

fn side(table: Table) -> Vec<(String, Figure)> {
    table.into_iter().map(|(name, samples)| (name, Figure::of(&samples))).collect()
}

/// A row with rvmm's columns on its side and the others on the other.
fn row(what: &str, unit: &'static str, table: Table) -> Row {
    let (machine, container) = side(table).into_iter().partition(|(name, _)| name.starts_with("rvmm"));
    Row { what: what.into(), unit, container, machine }
}
