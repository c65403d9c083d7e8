//! What the host has (sysconf(3)).

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
