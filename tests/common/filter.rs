//! System calls that the kernel refuses to a process.

use std::io;

/// Installs a filter (seccomp(2)) that lets `io_uring_setup` fail.
pub fn refuse_uring() -> io::Result<()> {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let (load, equal, end) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_RET);
    let mut filter = [
        // The number of the system call stands first.
        step(load as u16, 0, 0, 0),
        step(equal as u16, libc::SYS_io_uring_setup as u32, 0, 1),
        step(end as u16, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        step(end as u16, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live for the calls.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
