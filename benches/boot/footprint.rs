//! What a monitor occupies beside guest RAM, while its guest halts.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::measure;
use crate::monitor::{MEMORY_MIB, Monitor};

/// KiB of all mappings that are not guest RAM.
#[derive(Clone, Copy, Default, serde::Serialize)]
pub struct Footprint {
    /// Resident.
    pub rss_kib: u64,
    /// Resident, what is shared divided among those who share it.
    pub pss_kib: u64,
    /// Resident and of this process alone.
    pub private_kib: u64,
    pub threads: usize,
}

/// Starts the monitor, whose guest halts, and looks.
pub fn footprint(monitor: &Monitor, scratch: &Path) -> Result<Footprint, String> {
    let mut command = measure::command(monitor, scratch);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    thread::sleep(Duration::from_millis(500));
    let process = Path::new("/proc").join(child.id().to_string());
    let smaps = fs::read_to_string(process.join("smaps")).map_err(|error| error.to_string());
    let threads = fs::read_dir(process.join("task")).map_or(0, |tasks| tasks.count());
    let _ = child.kill();
    let _ = child.wait();
    let smaps = smaps?;
    if smaps.is_empty() {
        return Err("it has ended already".into());
    }
    Ok(Footprint { threads, ..sum(&smaps) })
}

/// Adds up the mappings that are smaller than guest RAM.
fn sum(smaps: &str) -> Footprint {
    let mut total = Footprint::default();
    let mut size = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            continue;
        };
        match key {
            "Size:" => size = kib,
            _ if size >= MEMORY_MIB << 10 => {}
            "Rss:" => total.rss_kib += kib,
            "Pss:" => total.pss_kib += kib,
            "Private_Clean:" | "Private_Dirty:" => total.private_kib += kib,
            _ => {}
        }
    }
    total
}
