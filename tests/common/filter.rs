//! System calls that the kernel refuses to a process.

use std::io;

/// Installs a filter (seccomp(2)) that lets `io_uring_setup` fail.
pub fn refuse_uring() -> io::Result<()> {
    install(&mut [
        load(CALL),
        equal(libc::SYS_io_uring_setup as u32, 0, 1),
        end(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ])
}

/// Installs one that knows no `PAGEMAP_SCAN`, as a kernel before 6.7.
pub fn refuse_scan() -> io::Result<()> {
    const PAGEMAP_SCAN: u32 = 0xc060_6610;
    install(&mut [
        load(CALL),
        equal(libc::SYS_ioctl as u32, 0, 3),
        load(REQUEST),
        equal(PAGEMAP_SCAN, 0, 1),
        end(libc::SECCOMP_RET_ERRNO | libc::ENOTTY as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ])
}

/// Where the number of the system call stands (`struct seccomp_data`).
const CALL: u32 = 0;
/// Where the lower half of its second argument stands.
const REQUEST: u32 = 24;

fn load(at: u32) -> libc::sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0)
}

/// Skips so many steps if what was loaded is `value`, so many if not.
fn equal(value: u32, if_so: u8, if_not: u8) -> libc::sock_filter {
    step(libc::BPF_JMP | libc::BPF_JEQ, value, if_so, if_not)
}

fn end(verdict: u32) -> libc::sock_filter {
    step(libc::BPF_RET, verdict, 0, 0)
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn install(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live for the calls.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
