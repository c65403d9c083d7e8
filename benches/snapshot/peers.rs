//! The same bare-metal guest saved and loaded by rvmm and by Firecracker, if that is installed, in turn: exec to the first words
//! of the guest that goes on. Firecracker's API: its docs/snapshotting/snapshot-support.md.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rvmm::api::client::{self, Error};
use serde_json::{Value, json};

use crate::common::{Failure, Samples, World, bare, find, load, target};

/// A guest that never stops to speak, and a part of what it says.
const TEST: &str = "dirty pages=1 mib=64 every=1";
const WORDS: &str = "dirty: round";
const MEMORY_MIB: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures rvmm, and Firecracker if it is there.
pub fn measure(world: &World, runs: usize) -> Result<Value, Failure> {
    println!(
        "\nFirst words of a restored guest, load average {}; p50 (p90) in milliseconds from exec",
        load()
    );
    let firecracker = find("RVMM_BENCH_FIRECRACKER", "firecracker");
    let firecracker = firecracker.map(|program| Firecracker::save(world, &program)).transpose()?;
    save(world)?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        ours.0.push(restored(world)?);
        if let Some(firecracker) = &firecracker {
            theirs.0.push(firecracker.loaded()?);
        }
    }
    println!("{:>12} {}", "rvmm", ours.cell());
    let mut figures = json!({ "rvmm_ms": ours.json() });
    if firecracker.is_none() {
        println!(
            "Firecracker is neither on PATH nor named by RVMM_BENCH_FIRECRACKER: nothing to compare with"
        );
        return Ok(figures);
    }
    println!("{:>12} {}", "Firecracker", theirs.cell());
    let ratio = ours.percentile(50) / theirs.percentile(50);
    figures["firecracker_ms"] = theirs.json();
    figures["target"] = target("rvmm beside Firecracker", ratio, 0.5, "of its time");
    Ok(figures)
}

/// Asks a machine, as soon as it listens.
fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        match client::call(socket, method, path, Some(body), PATIENCE) {
            Err(Error::Absent { .. }) if start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_micros(100));
            }
            answer => return Ok(answer.map(drop)?),
        }
    }
}

fn pause(socket: &Path) -> Result<(), Failure> {
    ask(socket, "PATCH", "/vm", &json!({ "state": "Paused" }))
}

/// Milliseconds from the start of `command`, and of what `then` asks of it, to the first words on its standard output.
fn first_words(mut command: Command, then: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut child = Killed(child);
    then()?;
    let mut output = child.0.stdout.take().ok_or("no output")?;
    let (mut said, mut bytes) = (String::new(), [0; 4096]);
    while !said.contains(WORDS) {
        match output.read(&mut bytes)? {
            0 => return Err(format!("the guest did not go on: {said}").into()),
            count => said.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// A process that ends with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn save(world: &World) -> Result<(), Failure> {
    let machine = world.boot("source", MEMORY_MIB, TEST, &[])?;
    machine.says(WORDS)?;
    pause(&world.socket("source"))?;
    world.create("source", "peer").map(drop)
}

fn restored(world: &World) -> Result<f64, Failure> {
    let mut command = world.rvmm();
    command.arg("restore").arg(world.path("peer"));
    first_words(command, || Ok(()))
}

struct Firecracker {
    program: PathBuf,
    socket: PathBuf,
    load: Value,
}

impl Firecracker {
    /// Boots the guest and saves it.
    fn save(world: &World, program: &Path) -> Result<Self, Failure> {
        let [config, state, memory, log, socket] =
            ["json", "state", "memory", "log", "sock"].map(|end| world.path(&format!("firecracker.{end}")));
        let machine = json!({
            "boot-source": { "kernel_image_path": bare(), "boot_args": format!("test={TEST}") },
            "drives": [],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        });
        fs::write(&config, machine.to_string())?;
        let load = json!({
            "snapshot_path": state,
            "mem_backend": { "backend_type": "File", "backend_path": memory },
            "resume_vm": true,
        });
        let firecracker = Firecracker { program: program.into(), socket, load };
        let mut command = firecracker.command();
        command.arg("--config-file").arg(&config).stdin(Stdio::null()).stdout(File::create(&log)?);
        let _machine = Killed(command.spawn()?);
        let start = Instant::now();
        while !String::from_utf8_lossy(&fs::read(&log)?).contains(WORDS) {
            if start.elapsed() > PATIENCE {
                return Err(format!("Firecracker does not boot the guest: see {}", log.display()).into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        pause(&firecracker.socket)?;
        let files = json!({ "snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory });
        ask(&firecracker.socket, "PUT", "/snapshot/create", &files)?;
        Ok(firecracker)
    }

    /// A new process at the socket, where an earlier one may have left its own.
    fn command(&self) -> Command {
        let _ = fs::remove_file(&self.socket);
        let mut command = Command::new(&self.program);
        command.arg("--api-sock").arg(&self.socket);
        command
    }

    fn loaded(&self) -> Result<f64, Failure> {
        first_words(self.command(), || ask(&self.socket, "PUT", "/snapshot/load", &self.load))
    }
}
