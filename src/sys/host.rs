//! Which host this is, and what it has (proc(5), /proc/sys/kernel/random/boot_id; sysconf(3)).

/// An identifier that a host gets when it starts and no other has; empty if it does not tell.
pub fn start() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().into()
}

/// Memory of the host in MiB.
pub fn memory_mib() -> u64 {
    // SAFETY: system calls without pointers.
    let [pages, size] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    (pages.max(0) as u64).saturating_mul(size.max(0) as u64) >> 20
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_what_the_kernel_says() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(super::memory_mib(), total >> 10);
    }
}
