//! A frozen copy of this process's memory: a forked child that does nothing, whose pages the kernel shares with ours
//! until either side writes (clone(2), proc(5), Documentation/admin-guide/mm/pagemap.rst).
//!
//! ```text
//!   parent  ──fork──────────────────────────────► goes on, its writes are its own
//!              └─► child: closes every descriptor, waits ──► killed when the copy has been read
//!   parent's writer thread reads the child's memory and its page map
//! ```
//!
//! The child shares no lock, no descriptor and no thread with anybody: it makes a few system calls and waits. It dies with
//! its parent.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::pagemap::{Pagemap, Pages};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The copy. It is gone when this value is dropped.
pub struct Frozen {
    pid: libc::pid_t,
    pagemap: Pagemap,
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
                let memory = || File::open(format!("/proc/{pid}/mem"));
                let opened = Pagemap::open(pid.unsigned_abs()).and_then(|pagemap| Ok((pagemap, memory()?)));
                let (pagemap, memory) = opened.inspect_err(|_| end(pid))?;
                Ok(Frozen { pid, pagemap, memory })
            }
        }
    }

    /// Process ID of the child.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Has the host, should it want for memory, end the copy before any other process (proc_pid_oom_score_adj(5)): what was to be saved is lost
    /// then, and not the machine.
    pub fn end_before_others(&self) {
        if let Err(error) = std::fs::write(format!("/proc/{}/oom_score_adj", self.pid), "1000") {
            log::debug!("the copy of memory is no sooner ended than the machine: {error}");
        }
    }

    /// Reads the copy's memory at `address`. Not with process_vm_readv(2): that pins pages, for which the kernel first gives the
    /// copy pages of its own.
    pub fn read(&self, address: usize, to: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(to, address as u64)
    }

    /// Makes sure that nobody has ended the copy, be it the host for want of memory: of one that has ended, the kernel says that no
    /// page is its own. If this succeeds, all that was read before is right.
    pub fn check(&self) -> io::Result<()> {
        // No process is deaf to this, and one that is to end does not stop any more.
        // SAFETY: as for `end`; the kernel fills in the structure, and leaves the child to be waited for.
        let mut told = unsafe {
            libc::kill(self.pid, libc::SIGSTOP);
            std::mem::zeroed::<libc::siginfo_t>()
        };
        let which = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
        // SAFETY: as above.
        while unsafe { libc::waitid(libc::P_PID, self.id(), &mut told, which) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        match told.si_code {
            libc::CLD_STOPPED => Ok(()),
            _ => Err(io::Error::other("the copy of it was ended before it was read")),
        }
    }

    /// The pages in a range of addresses that are the process's own, in order.
    pub fn own(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        self.pagemap.find(range, Pages::Own)
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
        // What a terminal has its processes stop and go on with is not for this one.
        libc::syscall(libc::SYS_setsid);
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
