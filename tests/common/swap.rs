//! Swap space for a test, and pages that are put there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;
use super::host::{self, Offer};

/// Bytes of swap space, enough for everything that a test puts there.
const SIZE: &str = "256M";

/// Makes swap space of a file, and gives it back when its standard input ends: also after a test that was killed. A terminal's
/// signals do not reach it.
const KEEPER: &str = r#"set -e
fallocate -l "$2" "$1"
chmod 600 "$1"
mkswap "$1" >&2
swapon -p 32767 "$1" >&2
echo on
read -r end || :
swapoff "$1" >&2
rm -f "$1""#;

/// Swap space that nobody else uses: whoever wants some waits for the others, whose pages would be in it when it is gone.
pub struct Swap {
    keeper: Child,
    _directory: TempDir,
    _alone: File,
}

impl Swap {
    /// Has the host swap to a file.
    pub fn new() -> Offer<Self> {
        host::root()?;
        for program in ["fallocate", "mkswap", "swapon", "swapoff"] {
            host::program(program)?;
        }
        let text = |error: std::io::Error| error.to_string();
        let alone = std::env::temp_dir().join("rvmm-test-swap.lock");
        let alone = File::options().create(true).append(true).open(alone).map_err(text)?;
        alone.lock().map_err(text)?;
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).map_err(text)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut keeper = Command::new("setsid");
        keeper.args(["sh", "-c", KEEPER, "swap"]).arg(directory.path().join("swap")).arg(SIZE);
        keeper.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let mut keeper = keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let mut says = String::new();
        let said = BufReader::new(keeper.stdout.as_mut().expect("a pipe")).read_line(&mut says);
        if said.is_ok() && says == "on\n" {
            return Ok(Swap { keeper, _directory: directory, _alone: alone });
        }
        let _ = keeper.stderr.take().expect("a pipe").read_to_string(&mut says);
        let _ = keeper.wait();
        Err(format!("no swap space: {}", says.lines().last().unwrap_or_default().trim()))
    }

    /// Puts what process `pid` has of its own into swap space, all but a little that is just in use, at least so many bytes. Only what
    /// no other process shares can be put there.
    #[track_caller]
    pub fn out(&self, pid: u32, at_least: u64) {
        let put = || {
            push(pid);
            swapped(pid) >= at_least
        };
        assert!(eventually(put), "of process {pid} only {} bytes are swapped out", swapped(pid));
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let ended = self.keeper.wait();
        if !std::thread::panicking() {
            assert!(ended.is_ok_and(|status| status.success()), "swap space is not given back");
        }
    }
}

/// Bytes of process `pid` that are in swap space.
pub fn swapped(pid: u32) -> u64 {
    let told = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = told.lines().find_map(|line| line.strip_prefix("VmSwap:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Asks the host once to put everything of process `pid` into swap space that it may write and shares with nobody.
pub fn push(pid: u32) {
    // SAFETY: a plain call that gives a descriptor.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int;
    if process < 0 {
        return;
    }
    // SAFETY: nobody else has it yet.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    for range in private(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()) {
        let part = libc::iovec { iov_base: range.start as *mut _, iov_len: range.len() };
        // SAFETY: the kernel reads the one `part`, and the advice changes no contents. It may be refused.
        unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                &raw const part,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
    }
}

/// The mappings of a process (`/proc/PID/maps`) that it may write and shares with nobody.
fn private(maps: &str) -> impl Iterator<Item = Range<usize>> {
    maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        rest.starts_with("rw-p").then_some(number(start)?..number(end)?)
    })
}
