//! A frozen copy of this process's memory: a forked child that does nothing, whose pages the kernel shares with ours
//! until either side writes (clone(2), process_vm_readv(2), Documentation/admin-guide/mm/pagemap.rst).
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
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The copy. It is gone when this value is dropped.
pub struct Frozen {
    pid: libc::pid_t,
    pagemap: File,
}

/// Where the kernel has a page of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Nowhere: never touched, or only known to the file it is mapped from.
    Absent,
    /// It is the file's own page.
    File,
    /// It belongs to the process: written at least once, in memory or swapped out.
    Private,
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
            pid => match File::open(format!("/proc/{pid}/pagemap")) {
                Ok(pagemap) => Ok(Frozen { pid, pagemap }),
                Err(error) => {
                    end(pid);
                    Err(error)
                }
            },
        }
    }

    /// Process ID of the child.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Reads the copy's memory at `address`.
    pub fn read(&self, address: usize, to: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let rest = &mut to[done..];
            let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            let remote = libc::iovec { iov_base: (address + done) as *mut _, iov_len: rest.len() };
            // SAFETY: `local` is exactly `rest`; the remote side is another process's memory, which the kernel checks.
            match unsafe { libc::process_vm_readv(self.pid, &local, 1, &remote, 1, 0) } {
                -1 => return Err(io::Error::last_os_error()),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count as usize,
            }
        }
        Ok(())
    }

    /// Says of each page from `address` on where it is; fills `pages`.
    pub fn pages(&self, address: usize, pages: &mut [Page]) -> io::Result<()> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        let mut entries = vec![0u8; pages.len() * 8];
        self.pagemap.read_exact_at(&mut entries, (address / PAGE * 8) as u64)?;
        for (page, entry) in pages.iter_mut().zip(entries.as_chunks::<8>().0) {
            let entry = u64::from_ne_bytes(*entry);
            *page = match (entry & (PRESENT | SWAPPED) != 0, entry & FILE != 0) {
                (false, _) => Page::Absent,
                (true, true) => Page::File,
                (true, false) => Page::Private,
            };
        }
        Ok(())
    }
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
