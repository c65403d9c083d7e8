//! Ways to keep the memory of a machine as it is at one moment, measured on plain memory: how long everything stands still,
//! and what the first write to a page costs afterwards.
//!
//! ```text
//!   fork      a child shares all pages, and the kernel copies those that are written      what rvmm does
//!   protect   userfaultfd protects all pages; a thread copies each that is written and lets it go
//!   copy      KVM's log tells which pages are dirty, and they are copied while everything stands still
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use rvmm::sys::frozen::{Frozen, PAGE};
use serde_json::{Value, json};

use super::common::{Failure, Samples, timed};

/// Pages whose first write is timed.
const WRITES: usize = 64;

// From linux/userfaultfd.h.
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const WRITE_PROTECT: libc::c_ulong = 0xc018_aa06;
const FEATURE_WP: u64 = 1;
const PROTECT: u64 = 1;
const MODE_WP: u64 = 2;
const MESSAGE: usize = 32;

/// Measures all ways for memory of so many MiB, of which some percent are there.
pub fn measure(mib: usize, runs: usize) -> Result<Value, Failure> {
    println!("\nWays to hold {mib} MiB still: ms of standing still, us of a first write; p50 (p90)");
    let mut rows = Vec::new();
    for (pages, advice) in [("huge", libc::MADV_HUGEPAGE), ("small", libc::MADV_NOHUGEPAGE)] {
        for percent in [1, 10, 100] {
            let mut cells = Vec::new();
            for way in [fork as Way, protect, copy] {
                let (mut still, mut write) = (Samples::default(), Samples::default());
                for _ in 0..runs {
                    let memory = Memory::new(mib << 20, percent, advice)?;
                    let (one, other) = way(&memory)?;
                    still.0.push(one);
                    write.0.push(other);
                }
                cells.push((still, write));
            }
            let names = ["fork", "protect", "copy"].into_iter().zip(&cells);
            let line: Vec<_> = names
                .map(|(name, (still, write))| format!("{name} {} {}", still.cell(), write.cell()))
                .collect();
            println!("{pages:5} pages, {percent:3} % there | {}", line.join(" | "));
            let cells = cells.iter().map(|(still, write)| json!([still.json(), write.json()]));
            rows.push(json!({ "pages": pages, "percent": percent, "ways": cells.collect::<Vec<_>>() }));
        }
    }
    Ok(json!(rows))
}

/// Milliseconds of standing still, and microseconds of a first write.
type Way = fn(&Memory) -> Result<(f64, f64), Failure>;

/// Private memory, written to in part.
struct Memory {
    start: *mut u8,
    len: usize,
    /// Distance of the pages that were written.
    step: usize,
}

impl Memory {
    fn new(len: usize, percent: usize, advice: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory where the kernel has room.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the memory is ours.
        unsafe { libc::madvise(start, len, advice) };
        let memory = Memory { start: start.cast(), len, step: PAGE * 100 / percent };
        memory.pages().for_each(|page| memory.write(page));
        Ok(memory)
    }

    fn pages(&self) -> impl Iterator<Item = usize> {
        (0..self.len).step_by(self.step)
    }

    fn write(&self, at: usize) {
        // SAFETY: in the memory, which nobody else has a reference to.
        unsafe { self.start.add(at).write_volatile(1) };
    }

    /// Some pages, here and there.
    fn some(&self) -> Vec<usize> {
        let pages: Vec<usize> = self.pages().collect();
        pages.iter().copied().step_by((pages.len() / WRITES).max(1)).collect()
    }

    /// Microseconds of the first write to each of [`Self::some`].
    fn first_writes(&self) -> f64 {
        let some = self.some();
        let (time, ()) = timed(|| some.iter().for_each(|&page| self.write(page)));
        time * 1e3 / some.len() as f64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn fork(memory: &Memory) -> Result<(f64, f64), Failure> {
    let (still, frozen) = timed(Frozen::fork);
    let frozen = frozen?;
    let write = memory.first_writes();
    drop(frozen);
    Ok((still, write))
}

fn protect(memory: &Memory) -> Result<(f64, f64), Failure> {
    // SAFETY: the call takes flags.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fault = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    let range = [memory.start as u64, memory.len as u64];
    call(&fault, API, &mut [0xaa, FEATURE_WP, 0])?;
    call(&fault, REGISTER, &mut [range[0], range[1], MODE_WP, 0])?;
    let (still, protected) = timed(|| call(&fault, WRITE_PROTECT, &mut [range[0], range[1], PROTECT]));
    protected?;
    let (mut faults, count) = (&fault, memory.some().len());
    let write = thread::scope(|scope| -> Result<f64, Failure> {
        let helper = scope.spawn(move || -> io::Result<()> {
            let (mut message, mut kept) = ([0; MESSAGE], vec![0u8; PAGE]);
            for _ in 0..count {
                faults.read_exact(&mut message)?;
                let (_, rest) = message.split_at(16);
                let address = rest.first_chunk().copied().map_or(0, u64::from_le_bytes);
                let page = address & !(PAGE as u64 - 1);
                // SAFETY: a page of the memory, which outlives this thread.
                unsafe { std::ptr::copy_nonoverlapping(page as *const u8, kept.as_mut_ptr(), PAGE) };
                call(faults, WRITE_PROTECT, &mut [page, PAGE as u64, 0])?;
            }
            Ok(())
        });
        let write = memory.first_writes();
        helper.join().map_err(|_| "the thread that copies pages ended")??;
        Ok(write)
    })?;
    Ok((still, write))
}

fn call<const N: usize>(fd: &File, request: libc::c_ulong, argument: &mut [u64; N]) -> io::Result<()> {
    // SAFETY: each request reads and writes as many 64-bit numbers as its caller gives.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn copy(memory: &Memory) -> Result<(f64, f64), Failure> {
    let mut kept = vec![0u8; memory.pages().count() * PAGE];
    // The pages of the copy are there before everything stands still.
    kept.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    let (still, ()) = timed(|| {
        for (page, to) in memory.pages().zip(kept.chunks_exact_mut(PAGE)) {
            // SAFETY: a page of the memory, and a page of the copy.
            unsafe { std::ptr::copy_nonoverlapping(memory.start.add(page), to.as_mut_ptr(), PAGE) };
        }
    });
    Ok((still, memory.first_writes()))
}
