//! Which pages of a process are there (proc(5), Documentation/admin-guide/mm/pagemap.rst): the kernel tells it as ranges
//! (PAGEMAP_SCAN, Linux 6.7), or page by page.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::frozen::PAGE;
use super::ranges::append;

/// Pages that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The process's own: written at least once, in memory or swapped out. The others were never touched, or are those of the
    /// file that they are mapped from.
    Own,
    /// Those that the process has used, and pages of a file next to them that the kernel mapped with them.
    Used,
}

/// The page map of a process.
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of a process of ours.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Pagemap)
    }

    /// The pages in a range of addresses, in order.
    pub fn find(&self, range: Range<usize>, pages: Pages) -> io::Result<Vec<Range<usize>>> {
        // Not one of a file.
        let own = if pages == Pages::Own { FILE } else { 0 };
        match self.scan(range.clone(), own, PRESENT | SWAPPED) {
            // An older kernel knows no such request.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.look(range, pages)
            }
            scanned => scanned,
        }
    }

    /// The process's own pages in a range that are in memory and not parts of huge ones. Fails with an older kernel.
    pub fn small(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        self.scan(range, FILE | HUGE, PRESENT)
    }

    /// The pages in a range that are swapped out. Fails with an older kernel.
    pub fn swapped(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        self.scan(range, 0, SWAPPED)
    }

    /// Has the kernel look for pages of any of some categories and none of others.
    fn scan(&self, range: Range<usize>, none_of: u64, any_of: u64) -> io::Result<Vec<Range<usize>>> {
        let mut found = Vec::new();
        let mut regions = [Region::default(); 512];
        let mut at = range.start as u64;
        while at < range.end as u64 {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start: at,
                end: range.end as u64,
                regions: regions.as_mut_ptr() as u64,
                count: regions.len() as u64,
                inverted: none_of,
                all_of: none_of,
                any_of,
                told: none_of,
                ..Scan::default()
            };
            // SAFETY: PAGEMAP_SCAN reads and writes one pm_scan_arg, and fills at most `count` regions.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &mut scan) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            let regions = regions.iter().take(count);
            regions.for_each(|region| append(&mut found, region.start as usize..region.end as usize));
            at = scan.walked.max(at + PAGE as u64);
        }
        Ok(found)
    }

    /// Looks at each page.
    fn look(&self, range: Range<usize>, pages: Pages) -> io::Result<Vec<Range<usize>>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        let (mut found, mut entries) = (Vec::new(), [0u8; 512 * 8]);
        for start in range.clone().step_by(512 * PAGE) {
            let entries = &mut entries[..(range.end - start).div_ceil(PAGE).min(512) * 8];
            self.0.read_exact_at(entries, (start / PAGE * 8) as u64)?;
            for (address, entry) in (start..).step_by(PAGE).zip(entries.as_chunks::<8>().0) {
                let entry = u64::from_ne_bytes(*entry);
                if entry & (PRESENT | SWAPPED) != 0 && (pages == Pages::Used || entry & FILE == 0) {
                    append(&mut found, address..address + PAGE);
                }
            }
        }
        Ok(found)
    }
}

// From linux/fs.h: _IOWR('f', 16, struct pm_scan_arg), and categories of pages.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const HUGE: u64 = 1 << 6;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::frozen::Frozen;

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
            let pagemap = Pagemap::open(frozen.id()).unwrap();
            let found = pagemap.look(start..start + length, Pages::Own).unwrap();
            if fd >= 0 {
                assert_eq!(found[0], start + 7 * PAGE..start + 9 * PAGE);
                assert_eq!(found.len(), 993);
            }
            assert_eq!(frozen.own(start..start + length).unwrap(), found);
            let used = pagemap.find(start..start + length, Pages::Used).unwrap();
            assert_eq!(pagemap.look(start..start + length, Pages::Used).unwrap(), used);
            let has = |page| used.iter().any(|used| used.contains(&(start + page * PAGE)));
            assert!([5, 7, 8, 16, 1998].into_iter().all(has));
            assert!(fd < 0 || ![1001, 1999, 9000].into_iter().any(has));
        }
    }
}
