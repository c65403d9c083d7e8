//! One run of a monitor: what it reached when, counted from the moment before it was started.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::monitor::{Monitor, Stamps};

/// What is measured, in the order in which it comes. All but the last in milliseconds from exec.
pub const METRICS: [&str; 7] = ["first-run", "kernel", "init", "ready", "exit", "gone", "cpu"];

/// Milliseconds of each metric that a run has reached.
pub type Sample = BTreeMap<&'static str, f64>;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    // SAFETY: all zeroes is a valid value of this plain structure, and the clock fills it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processes that outlive their parent become children of this one, so that the last of them can be waited for.
pub fn adopt_orphans() {
    // SAFETY: a call without pointers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Starts `monitor` and waits until nothing is left of it.
pub fn run(monitor: &Monitor, scratch: &Path, limit: Duration) -> Result<Sample, String> {
    let stamps = scratch.join("stamps");
    let _ = fs::remove_file(&stamps);
    let mut command = command(monitor, scratch);
    if monitor.stamps == Stamps::File {
        command.arg("--boot-timer").arg(&stamps);
    }
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    // A stream of stamps must not have complaints in it.
    match monitor.stamps {
        Stamps::Output => command.stderr(Stdio::inherit()),
        _ => command.stderr(writer.try_clone().map_err(|error| error.to_string())?),
    };
    command.stdin(Stdio::null()).stdout(writer);
    let start = now();
    let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", monitor.command[0]))?;
    // The pipe has no writer but the monitor, so that its end is seen.
    drop(command);
    let output = thread::spawn(move || read_output(&mut reader));
    let ended = wait(child.id(), start, limit);
    if ended.is_err() {
        // SAFETY: a call without pointers; the child was not waited for, so the number is its.
        unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
        wait_for_orphans(start + limit.as_nanos() as u64 + 5_000_000_000)?;
    }
    let (output, times) = output.join().unwrap_or_default();
    let (status, mut sample) = ended.map_err(|error| format!("{error}; output: {}", tail(&output)))?;
    if status != monitor.status {
        return Err(format!("exit status {status} instead of {}; output: {}", monitor.status, tail(&output)));
    }
    let mut stamp = |name: &str, time: u64| {
        if let Some(metric) = METRICS.iter().find(|metric| **metric == name) {
            sample.entry(metric).or_insert((time.saturating_sub(start)) as f64 / 1e6);
        }
    };
    match monitor.stamps {
        Stamps::None => {}
        Stamps::File => read_stamps(&stamps)?.into_iter().for_each(|(name, time)| stamp(&name, time)),
        Stamps::Output => times.into_iter().for_each(|(byte, time)| {
            stamp(["kernel", "init", "ready"].get(byte as usize).unwrap_or(&""), time);
        }),
    }
    Ok(sample)
}

/// The monitor's command, with a cache of its own if it is to start without one.
pub fn command(monitor: &Monitor, scratch: &Path) -> Command {
    let mut command = Command::new(&monitor.command[0]);
    command.args(&monitor.command[1..]);
    if monitor.cold {
        let cache = scratch.join("cache");
        let _ = fs::remove_dir_all(&cache);
        command.env("XDG_CACHE_HOME", cache);
    }
    command
}

/// All that was written, and when each of the first bytes came.
fn read_output(reader: &mut impl Read) -> (Vec<u8>, Vec<(u8, u64)>) {
    let (mut output, mut times) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    while let Ok(count) = reader.read(&mut buffer) {
        let time = now();
        if count == 0 {
            break;
        }
        times.extend(buffer[..count].iter().take(16).map(|byte| (*byte, time)));
        output.extend(&buffer[..count]);
    }
    (output, times)
}

fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn read_stamps(path: &Path) -> Result<Vec<(String, u64)>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("no stamps: {error}"))?;
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((line["milestone"].as_str()?.to_string(), line["monotonic_ns"].as_u64()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Waits for the child, then for everybody that it has left behind. Returns its exit status.
fn wait(child: u32, start: u64, limit: Duration) -> Result<(i32, Sample), String> {
    wait_readable(child, limit)?;
    let (status, cpu) = wait_one(child as i32, 0).ok_or("the child is not ours")?;
    let exit = now();
    let (gone, orphans_cpu) = wait_for_orphans(start + limit.as_nanos() as u64)?;
    let mut sample = Sample::new();
    sample.insert("exit", (exit - start) as f64 / 1e6);
    sample.insert("gone", (gone.unwrap_or(exit) - start) as f64 / 1e6);
    sample.insert("cpu", cpu + orphans_cpu);
    Ok((status, sample))
}

/// When the last one ended, if there was one, and the CPU time of all.
fn wait_for_orphans(deadline: u64) -> Result<(Option<u64>, f64), String> {
    let (mut gone, mut total) = (None, 0.0);
    loop {
        match wait_one(-1, libc::WNOHANG) {
            Some((_, cpu)) => (gone, total) = (Some(now()), total + cpu),
            None if std::io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => {
                return Ok((gone, total));
            }
            None if now() > deadline => return Err("a process of the monitor stays".into()),
            None => thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// Exit status (negative: the signal) and CPU milliseconds of one child that has ended.
fn wait_one(child: i32, flags: i32) -> Option<(i32, f64)> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid value of this plain structure, and both pointers are to locals.
    let (pid, usage) = unsafe {
        *libc::__errno_location() = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(child, &mut status, flags | libc::__WALL, &mut usage), usage)
    };
    let milliseconds = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) };
    (pid > 0).then(|| (code, milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime)))
}

/// Waits until the child has ended, at most for `limit`.
fn wait_readable(child: u32, limit: Duration) -> Result<(), String> {
    // SAFETY: a call without pointers; a descriptor that it returns is ours.
    let fd = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, child, 0) {
            -1 => return Err(std::io::Error::last_os_error().to_string()),
            fd => OwnedFd::from_raw_fd(fd as i32),
        }
    };
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which lives for the call.
    match unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) } {
        1 => Ok(()),
        _ => Err(format!("did not end within {} s", limit.as_secs())),
    }
}
