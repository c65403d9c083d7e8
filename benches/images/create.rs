//! From nothing to the first instruction of what was asked for: a process in a container, a guest in a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::bench::{self, Failure, Samples, World};
use crate::system::{System, run};
use crate::{Figure, Row};

/// A container's first process: it says when it runs, or waits for ever.
const PROCESS: &str = "#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf(\"%lld\\n\", t.tv_sec * 1000000000LL + t.tv_nsec);
    fflush(stdout);
    while (argc > 1) pause();
    return 0;
}
";

/// Nanoseconds of CLOCK_MONOTONIC.
fn now() -> u64 {
    // SAFETY: all zeroes is a valid value of this plain structure, and the clock fills it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A container: an overlay over the system, and a bundle of the OCI runtime specification.
pub struct Container {
    pub directory: PathBuf,
    pub id: String,
}

/// A directory with the containers' first process.
pub fn process(world: &World) -> Result<PathBuf, Failure> {
    let lower = world.path("process");
    fs::create_dir_all(&lower)?;
    let source = world.path("process.c");
    fs::write(&source, PROCESS)?;
    run(Command::new("cc").args(["-O2", "-static", "-o"]).arg(lower.join("stamp")).arg(&source))?;
    Ok(lower)
}

/// What `runc spec` makes, changed to run our process.
pub fn specification(world: &World, waits: bool) -> Result<Value, Failure> {
    let bundle = world.path("bundle");
    let _ = fs::remove_dir_all(&bundle);
    fs::create_dir_all(&bundle)?;
    run(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let mut value: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    value["process"]["terminal"] = false.into();
    value["process"]["args"] = if waits { vec!["/stamp", "wait"] } else { vec!["/stamp"] }.into();
    value["root"]["readonly"] = false.into();
    value["root"]["path"] = "merged".into();
    Ok(value)
}

impl Container {
    /// Makes the directories and mounts the overlay.
    pub fn new(world: &World, id: String, lower: &[&Path], specification: &Value) -> Result<Self, Failure> {
        let directory = world.path("containers").join(&id);
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(directory.join("config.json"), specification.to_string())?;
        let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
        let place = |name: &str| directory.join(name).display().to_string();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), place("upper"), place("work"));
        let container = Container { directory, id };
        let target = container.directory.join("merged");
        mount(&options, &target)?;
        Ok(container)
    }

    /// The runtime's command to run it.
    pub fn run(&self, runtime: &str) -> Command {
        let mut command = Command::new(runtime);
        command.arg("run").arg("--bundle").arg(&self.directory);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Ok(target) =
            std::ffi::CString::new(self.directory.join("merged").as_os_str().as_encoded_bytes())
        {
            // SAFETY: the path is a string that ends with 0.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn mount(options: &str, target: &Path) -> Result<(), Failure> {
    let text = |text: &[u8]| std::ffi::CString::new(text);
    let (kind, target, options) =
        (text(b"overlay")?, text(target.as_os_str().as_encoded_bytes())?, text(options.as_bytes())?);
    // SAFETY: all are strings that end with 0 and live through the call.
    let result =
        unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
    match result {
        0 => Ok(()),
        _ => Err(format!("cannot mount an overlay: {}", std::io::Error::last_os_error()).into()),
    }
}

pub fn measure(world: &World, system: &System, runs: usize) -> Result<Vec<Row>, Failure> {
    let lower = process(world)?;
    let specification = specification(world, false)?;
    let mut first: Vec<(String, Samples)> = Vec::new();
    let mut whole: Vec<(String, Samples)> = Vec::new();
    let mut add = |name: &str, to_first: f64, to_end: f64| {
        for (list, value) in [(&mut first, to_first), (&mut whole, to_end)] {
            match list.iter_mut().find(|(known, _)| known == name) {
                Some((_, samples)) => samples.0.push(value),
                None => list.push((name.into(), Samples(vec![value]))),
            }
        }
    };
    snapshot(world)?;
    for run in 0..=runs {
        let mut told: Vec<(&str, f64, f64)> = Vec::new();
        for runtime in ["runc", "crun"] {
            match container(world, runtime, &[&lower, &system.root], &specification, run) {
                Ok((first, end)) => told.push((runtime, first, end)),
                Err(error) if run == 0 => println!("{runtime} is left out: {error}"),
                Err(_) => {}
            }
        }
        let (first, end) = machine(world, &boot(world))?;
        told.push(("rvmm boots", first, end));
        let (first, end) = machine(world, &restore(world))?;
        told.push(("rvmm restores", first, end));
        told.push(clone(world)?);
        // The first round warms the caches.
        if run > 0 {
            told.into_iter().for_each(|(name, first, end)| add(name, first, end));
        }
    }
    let row = |what: &str, samples: &[(String, Samples)]| {
        let side = |ours: bool| {
            let of = |(name, samples): &(String, Samples)| (name.clone(), Figure::of(samples));
            samples.iter().filter(|(name, _)| name.starts_with("rvmm") == ours).map(of).collect()
        };
        Row { what: what.into(), unit: "ms", container: side(false), machine: side(true) }.told()
    };
    whole.retain(|(name, _)| name != "rvmm clones");
    Ok(vec![row("creation to first instruction", &first), row("creation, run and removal", &whole)])
}

/// Milliseconds until the process runs, and until nothing is left.
fn container(
    world: &World,
    runtime: &str,
    lower: &[&Path],
    specification: &Value,
    run: usize,
) -> Result<(f64, f64), Failure> {
    let start = now();
    let container = Container::new(world, format!("{runtime}-{run}"), lower, specification)?;
    let output = container.run(runtime).arg(&container.id).stdin(Stdio::null()).output()?;
    drop(container);
    let end = now();
    let stamp: Result<u64, _> = String::from_utf8_lossy(&output.stdout).trim().parse();
    let stamp = stamp.map_err(|_| String::from_utf8_lossy(&output.stderr).trim().to_string())?;
    Ok(((stamp - start) as f64 / 1e6, (end - start) as f64 / 1e6))
}

/// The snapshot that machines are restored and cloned from: a guest that halts, with a disk.
fn snapshot(world: &World) -> Result<(), Failure> {
    fs::File::create(world.path("disk"))?.set_len(64 << 20)?;
    let disk = format!("{},overlay", world.path("disk").display());
    let machine = world.boot("source", 256, "hello end=hlt", &["--disk", &disk])?;
    machine.says("OK hello")?;
    world.create("source", "one")?;
    Ok(())
}

fn boot(world: &World) -> Vec<String> {
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/bare/target/release/bare");
    let disk = format!("{},overlay", world.path("disk").display());
    let words = ["--kernel", &kernel.to_string_lossy(), "--net", "none", "--memory", "256M", "--disk", &disk];
    let words = words.map(String::from).into_iter();
    words.chain(["--cmdline-only".into(), "test=exit".into()]).collect()
}

fn restore(world: &World) -> Vec<String> {
    vec!["restore".into(), world.path("one").to_string_lossy().into_owned(), "--name".into(), "again".into()]
}

/// Milliseconds until the guest runs, and until the command has ended.
fn machine(world: &World, arguments: &[String]) -> Result<(f64, f64), Failure> {
    let stamps = world.path("stamps");
    let _ = fs::remove_file(&stamps);
    let restored = arguments[0] == "restore";
    let start = now();
    let mut command = world.rvmm();
    command.args(arguments).arg("--boot-timer").arg(&stamps).args(["--console", "off"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    if restored {
        // It halts, and has to be stopped.
        while !world
            .rvmm()
            .args(["stop", "--force", "again"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()?
            .success()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    child.wait()?;
    let end = now();
    let text = fs::read_to_string(&stamps)?;
    let first = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let first =
        first.filter(|line| line["milestone"] == "first-run").find_map(|line| line["monotonic_ns"].as_u64());
    let first = first.ok_or("the machine does not say when it ran")?;
    Ok(((first - start) as f64 / 1e6, (end - start) as f64 / 1e6))
}

/// Milliseconds until the command says that the clone runs.
fn clone(world: &World) -> Result<(&'static str, f64, f64), Failure> {
    let snapshot = world.path("one");
    let arguments = ["clone", &snapshot.to_string_lossy(), "--name", "c", "-n", "1"];
    let (time, report) = bench::timed(|| world.json(&arguments));
    report?;
    world.stop_all();
    Ok(("rvmm clones", time, time))
}
