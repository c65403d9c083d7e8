//! Which host this is (proc(5), /proc/sys/kernel/random/boot_id).

/// An identifier that a host gets when it starts and no other has; empty if it does not tell.
pub fn start() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().into()
}
