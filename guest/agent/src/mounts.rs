//! Mounted file systems (`/proc/self/mounts`, `proc(5)`).

use alloc::string::String;
use alloc::vec::Vec;

/// A file system in a place.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub path: String,
    /// It can be written to.
    pub writable: bool,
}

/// Reads the table, in the order in which things were mounted. File systems of the kernel itself are left out.
pub fn parse(table: &str) -> Vec<Mount> {
    const KERNEL: [&str; 16] = [
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "tmpfs",
        "ramfs",
        "rootfs",
        "cgroup",
        "cgroup2",
        "debugfs",
        "tracefs",
        "securityfs",
        "bpf",
        "mqueue",
        "hugetlbfs",
        "configfs",
    ];
    table
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, path, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let writable = options.split(',').any(|option| option == "rw");
            (!KERNEL.contains(&kind)).then(|| Mount { path: unescape(path), writable })
        })
        .collect()
}

/// Blanks and the like stand in the table as `\` and three octal digits.
fn unescape(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| core::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table() {
        let table = "/dev/vda / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\n/dev/vdb /mnt/a\\040b\\134c xfs ro 0 0\n\
                     bad\n/dev/vdc /x ext4 ro,rw_like 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        let mount = |path: &str, writable| Mount { path: path.into(), writable };
        assert_eq!(parse(table), [mount("/", true), mount("/mnt/a b\\c", false), mount("/x", false)]);
    }
}
