//! File systems that hold still: all that was written is on the disk, and nothing more is written until they are thawed
//! (`FIFREEZE`, `FITHAW`).

use alloc::string::String;
use alloc::vec::Vec;

use agent::json::{self, Value};
use agent::mounts;

use crate::process::{self, Disposition, SIGINT, SIGTERM};
use crate::protocol::{self, Channel, Refusal};
use crate::sys::{self, Clock, Errno, Fd, Poll, Result};

const FIFREEZE: usize = 0xc004_5877;
const FITHAW: usize = 0xc004_5878;

/// How long file systems stay frozen if the host does not say, and at most, in milliseconds.
const DEFAULT_TIMEOUT: u64 = 10_000;
const LONGEST_TIMEOUT: u64 = 600_000;

/// File systems that this process froze. They are thawed with it.
struct Frozen(Vec<(String, Fd)>);

impl Frozen {
    /// Thaws all, the last one first; says which.
    fn thaw(&mut self) -> Vec<Value> {
        let mut thawed = Vec::new();
        while let Some((path, fd)) = self.0.pop() {
            // SAFETY: FITHAW looks at no argument.
            if unsafe { sys::ioctl(fd.0, FITHAW, &mut 0_i32) }.is_ok() {
                thawed.push(Value::Text(path));
            }
        }
        thawed
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Freezes, and serves the connection until it is time to thaw.
pub fn run(channel: &Channel, request: &Value) -> Result {
    let limit = request.get("timeout_ms").map_or(Some(DEFAULT_TIMEOUT), Value::as_number);
    let Some(limit) = limit.filter(|limit| (1..=LONGEST_TIMEOUT).contains(limit)) else {
        return channel.answer(Err(Refusal::new("`timeout_ms` is a number from 1 to 600000")));
    };
    let paths = match paths(request) {
        Ok(paths) => paths,
        Err(refusal) => return channel.answer(Err(refusal)),
    };
    // Whoever freezes must not be the one that a shortage of memory ends, or the end of the system: the kernel would thaw nothing.
    let _ = sys::write_file("/proc/self/oom_score_adj", b"-1000");
    let end = |disposition| [SIGTERM, SIGINT].map(|signal| process::set_signal(signal, disposition));
    end(Disposition::Ignore);
    let deadline = sys::now(Clock::Monotonic) + limit * 1_000_000;
    let mut frozen = Frozen(Vec::new());
    let mut skipped = Vec::new();
    let mut devices = Vec::new();
    // What was mounted last may lie on what was mounted before: it is frozen first.
    for path in paths.iter().rev() {
        match freeze(path, &mut devices) {
            Ok(Some(fd)) => frozen.0.push((path.clone(), fd)),
            Ok(None) => {}
            Err(error) => skipped.push((path.clone(), Value::Text(alloc::format!("{error}")))),
        }
    }
    let names = frozen.0.iter().map(|(path, _)| json::text(path)).collect();
    channel
        .answer(Ok(json::object([("frozen", Value::List(names)), ("skipped", Value::Object(skipped))])))?;
    let held = hold(channel, frozen, deadline);
    end(Disposition::Default);
    let _ = sys::write_file("/proc/self/oom_score_adj", b"0");
    held
}

/// Waits for `thaw`, for the host to go or for the time to be over.
fn hold(channel: &Channel, mut frozen: Frozen, deadline: u64) -> Result {
    let mut payload = Vec::new();
    loop {
        let left = deadline.saturating_sub(sys::now(Clock::Monotonic)).div_ceil(1_000_000);
        match sys::poll(&mut [Poll::new(channel.fd(), Poll::IN)], Some(left)) {
            Err(Errno::INTR) => continue,
            // The answer to the next request says that it is too late.
            Ok(0) => {
                if left == 0 {
                    return Ok(());
                }
            }
            _ => {
                let Some(request) = channel.receive_message(&mut payload)? else { return Err(Errno::PIPE) };
                match request.get("op").and_then(Value::as_text) {
                    Some("thaw") => {
                        let thawed = Value::List(frozen.thaw());
                        return channel.answer(Ok(json::object([("thawed", thawed)])));
                    }
                    Some("ping") => channel.answer(Ok(protocol::done()))?,
                    _ => channel.answer(Err(Refusal::new("File systems are frozen: thaw them first")))?,
                }
            }
        }
    }
}

fn paths(request: &Value) -> core::result::Result<Vec<String>, Refusal> {
    match request.get("paths") {
        Some(paths) => {
            let texts = paths
                .as_list()
                .and_then(|list| list.iter().map(|path| path.as_text().map(String::from)).collect());
            texts.ok_or_else(|| Refusal::new("`paths` is a list of texts"))
        }
        None => {
            let table =
                sys::read_file("/proc/self/mounts").map_err(|error| Refusal::by(error, "read the mounts"))?;
            let writable = mounts::parse(&table).into_iter().filter(|mount| mount.writable);
            Ok(writable.map(|mount| mount.path).collect())
        }
    }
}

/// Freezes one file system, unless it was frozen here by another path.
fn freeze(path: &str, devices: &mut Vec<u64>) -> Result<Option<Fd>> {
    let fd = Fd::open(path, sys::open::READ | sys::open::NONBLOCK, 0)?;
    let device = fd.stat()?.device;
    if devices.contains(&device) {
        return Ok(None);
    }
    devices.push(device);
    // SAFETY: FIFREEZE looks at no argument.
    unsafe { sys::ioctl(fd.0, FIFREEZE, &mut 0_i32) }?;
    Ok(Some(fd))
}
