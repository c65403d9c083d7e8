//! `rvmm ps`: the machines that run.

use serde::Serialize;
use serde_json::Value;

use super::image::ended::Ended;
use super::image::stands_on::StandsOn;
use super::image::start::damaged;
use super::output::{Failure, complain, print, print_json};
use super::{Common, exit, machines, store, table};
use crate::api::client::{self, Client};
use crate::api::runtime::Machine;
use crate::image::{self, Digest, Index, Instance};

// Options of `ps`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm ps
  rvmm ps -a
  rvmm ps --json | jq -r '.[] | select(.state == \"Paused\") | .name'
  rvmm stop $(rvmm ps -q)

States:
  running     its vCPUs run
  paused      somebody paused it: `rvmm resume` lets it go on
  stalled     it paused itself, `rvmm inspect` says why: put that right, then `rvmm resume`
  starting    it is being made, or just ends
  silent      its process does not answer: `rvmm stop --force` ends it
  stopped     it has a name and was made of an image: `rvmm start` starts it again. The number is its exit status
  damaged     what is known of it cannot be read: `rvmm rm -f` removes it")]
pub struct Args {
    /// Show named machines of images that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// One line of the table.
#[derive(Serialize)]
struct Line {
    name: String,
    state: String,
    pid: Option<u64>,
    vcpu_count: Option<u64>,
    mem_size_mib: Option<u64>,
    uptime_ms: Option<u64>,
    /// A name of the image that it runs, or the image's digest.
    image: Option<String>,
    kernel: Option<String>,
    /// How it ended, if it does not run and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    /// Why it is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Lists machines.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let machines = machines::all(common)?;
    let stopped = if args.all { stopped(&machines, common)? } else { Vec::new() };
    let damaged: Vec<String> = stopped.iter().filter_map(|line| line.error.clone()).collect();
    list(args, common, &machines, stopped)?;
    damaged.iter().for_each(|reason| complain(common.json, exit::REFUSED, reason));
    Ok(if damaged.is_empty() { 0 } else { exit::REFUSED })
}

fn list(args: &Args, common: &Common, machines: &[Machine], stopped: Vec<Line>) -> Result<(), Failure> {
    if args.quiet {
        let running = machines.iter().map(|machine| &machine.name);
        let names: Vec<_> = running.chain(stopped.iter().map(|line| &line.name)).collect();
        match common.json {
            true => print_json(&names)?,
            false => names.iter().try_for_each(print)?,
        }
        return Ok(());
    }
    // All are asked before the first answer is waited for: many that do not answer take no longer than one.
    let ask = |machine: &Machine| {
        let mut client = Client::connect(&machine.socket, machines::PATIENCE)?;
        client.send("GET", "/vm", None)?;
        Ok(client)
    };
    let asked: Vec<_> = machines.iter().map(|machine| (machine, ask(machine))).collect();
    let mut lines = Vec::new();
    for (machine, client) in asked {
        let answer = client.and_then(|mut client| client.receive());
        // A machine that has ended since is no news.
        if answer.is_ok() || !machine.is_gone() {
            lines.push(Line::new(machine, answer));
        }
    }
    lines.extend(stopped);
    name_images(&mut lines, common)?;
    match common.json {
        true => print_json(&lines),
        false => print(text(&lines)),
    }
}

/// Puts names for digests where images have names.
fn name_images(lines: &mut [Line], common: &Common) -> Result<(), Failure> {
    if lines.iter().all(|line| line.image.is_none()) {
        return Ok(());
    }
    let Some(index) = store::existing(common)?.and_then(|store| store.read_index().ok()) else {
        return Ok(());
    };
    for image in lines.iter_mut().filter_map(|line| line.image.as_mut()) {
        let entry = index.manifests.iter().find(|entry| entry.digest.to_string() == *image);
        if let Some(name) = entry.and_then(Index::name_of) {
            *image = name.into();
        }
    }
    Ok(())
}

/// Instances of the store that are not among `machines`.
fn stopped(machines: &[Machine], common: &Common) -> Result<Vec<Line>, Failure> {
    let Some(store) = store::existing(common)? else { return Ok(Vec::new()) };
    let names = store.instance_names().map_err(Failure::refused)?.into_iter();
    let stopped = names.filter(|name| machines.iter().all(|machine| machine.name != *name));
    Ok(stopped.filter_map(|name| Some(Line::stopped(&name, store.instance(&name).transpose()?))).collect())
}

impl Line {
    /// One that does not run.
    fn stopped(name: &str, found: Result<Instance, image::Error>) -> Self {
        let state = if found.is_ok() { "Stopped" } else { "Damaged" };
        match found {
            Ok(instance) => Line {
                image: Some(instance.record.image.digest.to_string()),
                ended: Ended::read(instance.path()),
                ..Self::described(name, state, &instance.record.machine)
            },
            Err(error) => {
                Line { error: Some(damaged(name, &error)), ..Self::described(name, state, &Value::Null) }
            }
        }
    }

    /// One with this configuration.
    fn described(name: &str, state: &str, config: &Value) -> Self {
        Line {
            name: name.into(),
            state: state.into(),
            pid: None,
            vcpu_count: config["machine-config"]["vcpu_count"].as_u64(),
            mem_size_mib: config["machine-config"]["mem_size_mib"].as_u64(),
            uptime_ms: None,
            image: None,
            kernel: config["boot-source"]["kernel_image_path"].as_str().map(String::from),
            ended: None,
            error: None,
        }
    }

    fn new(machine: &Machine, answer: Result<Value, client::Error>) -> Self {
        let state = match &answer {
            Ok(said) if said["stalled"].is_string() => "Stalled",
            Ok(said) => said["state"].as_str().unwrap_or("Unknown"),
            Err(client::Error::Absent { .. } | client::Error::Lost(_)) => "Starting",
            Err(_) => "Silent",
        };
        let state = state.to_string();
        let said = answer.unwrap_or_default();
        Line {
            pid: machine.pid.map(u64::from).or(said["pid"].as_u64()),
            uptime_ms: said["uptime_ms"].as_u64(),
            image: StandsOn::read(machine.directory()).map(|found| found.image.digest.to_string()),
            ..Self::described(&machine.name, &state, &said["config"])
        }
    }

    fn cells(&self) -> [String; 7] {
        let number = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
        [
            self.name.clone(),
            match &self.ended {
                Some(ended) => format!("{} ({})", self.state.to_lowercase(), ended.status),
                None => self.state.to_lowercase(),
            },
            number(self.pid),
            number(self.vcpu_count),
            self.mem_size_mib.map_or("-".into(), memory),
            self.uptime_ms.map_or("-".into(), |millis| uptime(millis / 1000)),
            match &self.image {
                Some(image) => image.parse::<Digest>().map_or(image.clone(), |digest| digest.short()),
                None => self.kernel.clone().unwrap_or("-".into()),
            },
        ]
    }
}

fn text(lines: &[Line]) -> String {
    let head = ["NAME", "STATE", "PID", "CPUS", "MEMORY", "UPTIME", "IMAGE/KERNEL"];
    table::table(head, lines.iter().map(Line::cells))
}

/// A size as users write it.
fn memory(mib: u64) -> String {
    if mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") }
}

fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn draws_a_table() {
        assert_eq!(text(&[]), "NAME  STATE  PID  CPUS  MEMORY  UPTIME  IMAGE/KERNEL");
        let config = json!({
            "machine-config": { "vcpu_count": 12, "mem_size_mib": 2048 },
            "boot-source": { "kernel_image_path": "/boot/vmlinuz" },
        });
        let said = json!({ "state": "Running", "pid": 42, "uptime_ms": 61_000, "config": config });
        let directory = tempfile::tempdir().unwrap();
        let runtime = crate::api::runtime::Directory::new(directory.path().join("r"));
        let _entry = runtime.claim(&"quiet-otter-3f".parse().unwrap()).unwrap();
        let machine = runtime.machines().unwrap().remove(0);
        let mut lines = vec![Line::new(&machine, Ok(said)), Line::new(&machine, Err(client::Error::Silent))];
        lines.iter_mut().for_each(|line| line.pid = line.pid.map(|_| 42));
        assert_eq!(
            text(&lines),
            "NAME            STATE    PID  CPUS  MEMORY  UPTIME  IMAGE/KERNEL\n\
             quiet-otter-3f  running  42   12    2G      1m      /boot/vmlinuz\n\
             quiet-otter-3f  silent   42   -     -       -       -"
        );
    }

    #[test]
    fn shortens_times() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(uptime(seconds), text);
        }
        assert_eq!((memory(512), memory(1024)), ("512M".into(), "1G".into()));
    }
}
