//! A frozen copy of this process's memory: a forked child that does nothing, whose pages the kernel shares with ours
//! until either side writes (clone(2), proc(5), Documentation/admin-guide/mm/pagemap.rst).
//!
//! Which pages are the copy's own the kernel tells as ranges (PAGEMAP_SCAN, Linux 6.7), or page by page.
//!
//! ```text
//!   parent  ──fork──────────────────────────────► goes on, its writes are its own
//!              └─► child: closes every descriptor, waits ──► killed when the copy has been read
//!   parent's writer thread reads the child's memory and its page map
//! ```
//!
//! The child shares no lock, no descriptor and no thread with anybody: it makes three system calls and waits. It dies with
//! its parent.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The copy. It is gone when this value is dropped.
pub struct Frozen {
    pid: libc::pid_t,
    pagemap: File,
    memory: File,
}

impl Frozen {
    /// Freezes the memory of this process as it is now. Takes about 1 ms for each 512 MiB of huge pages, or for each
    /// 32 MiB of touched small ones.
    pub fn fork() -> io::Result<Self> {
        let parent = std::process::id() as libc::pid_t;
        let none = 0usize;
        // SAFETY: a plain fork without the C library's handlers. The child runs `wait_forever` alone, which touches
        // nothing that another thread may have held in the middle of a change.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, none, none, none, none) };
        match pid as libc::pid_t {
            0 => wait_forever(parent),
            -1 => Err(io::Error::last_os_error()),
            pid => {
                let open = |name| File::open(format!("/proc/{pid}/{name}"));
                let opened = open("pagemap").and_then(|pagemap| Ok((pagemap, open("mem")?)));
                let (pagemap, memory) = opened.inspect_err(|_| end(pid))?;
                Ok(Frozen { pid, pagemap, memory })
            }
        }
    }

    /// Process ID of the child.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Reads the copy's memory at `address`. Not with process_vm_readv(2): that pins pages, for which the kernel first gives the
    /// copy pages of its own.
    pub fn read(&self, address: usize, to: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(to, address as u64)
    }

    /// The pages in a range of addresses that are the process's own, in order: written at least once, in memory or swapped out.
    /// The others were never touched, or are those of the file that they are mapped from.
    pub fn own(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        match self.scan(range.clone()) {
            // An older kernel knows no such request.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.look(range)
            }
            scanned => scanned,
        }
    }

    /// Has the kernel look for them.
    fn scan(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut own = Vec::new();
        let mut regions = [Region::default(); 512];
        let mut at = range.start as u64;
        while at < range.end as u64 {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start: at,
                end: range.end as u64,
                regions: regions.as_mut_ptr() as u64,
                count: regions.len() as u64,
                inverted: FILE,
                all_of: FILE,
                any_of: PRESENT | SWAPPED,
                told: FILE,
                ..Scan::default()
            };
            // SAFETY: PAGEMAP_SCAN reads and writes one pm_scan_arg, and fills at most `count` regions.
            let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut scan) };
            let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
            let found = regions.iter().take(found);
            found.for_each(|region| add(&mut own, region.start as usize..region.end as usize));
            at = scan.walked.max(at + PAGE as u64);
        }
        Ok(own)
    }

    /// Looks at each page.
    fn look(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        let (mut own, mut entries) = (Vec::new(), [0u8; 512 * 8]);
        for start in range.clone().step_by(512 * PAGE) {
            let entries = &mut entries[..(range.end - start).div_ceil(PAGE).min(512) * 8];
            self.pagemap.read_exact_at(entries, (start / PAGE * 8) as u64)?;
            for (address, entry) in (start..).step_by(PAGE).zip(entries.as_chunks::<8>().0) {
                let entry = u64::from_ne_bytes(*entry);
                if entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0 {
                    add(&mut own, address..address + PAGE);
                }
            }
        }
        Ok(own)
    }
}

/// Adds a range behind all others.
fn add(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

// From linux/fs.h: _IOWR('f', 16, struct pm_scan_arg), and categories of pages.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Where it came to.
    walked: u64,
    regions: u64,
    count: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        end(self.pid);
    }
}

/// The child's whole life.
fn wait_forever(parent: libc::pid_t) -> ! {
    // SAFETY: system calls without pointers. Descriptors are closed so that no lock, tap or pipe lives on in the child.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        // The parent may have died before the first call.
        while libc::syscall(libc::SYS_getppid) == libc::c_long::from(parent) {
            libc::syscall(libc::SYS_pause);
        }
        libc::syscall(libc::SYS_exit_group, 0);
    }
    unreachable!("exit_group does not return")
}

fn end(pid: libc::pid_t) {
    // SAFETY: `pid` is a child of ours that has not been waited for, so the number is not anybody else's.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_same() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 9 * PAGE], 0).unwrap();
        let length = 64 << 20;
        let map = |fd, flags| {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping, which nobody else uses and which stays until the process ends.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: it was just mapped so.
            (start as usize, unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), length) })
        };
        for fd in [-1, file.as_raw_fd()] {
            let anonymous = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
            let (start, bytes) = map(fd, libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous);
            // Read only, and written: neighbours, and more pieces than one request tells of.
            assert_eq!(bytes[5 * PAGE], u8::from(fd >= 0));
            let written = [7, 8].into_iter().chain((16..2000).step_by(2));
            written.for_each(|page| bytes[page * PAGE] = 3);
            let frozen = Frozen::fork().unwrap();
            let found = frozen.look(start..start + length).unwrap();
            if fd >= 0 {
                assert_eq!(found[0], start + 7 * PAGE..start + 9 * PAGE);
                assert_eq!(found.len(), 993);
            }
            assert_eq!(frozen.own(start..start + length).unwrap(), found);
        }
    }
}
