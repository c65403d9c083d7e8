//! The tree of files: what is in it, and new entries (`getdents64(2)`, `mkdir(2)`, `symlink(2)`).

use alloc::string::String;
use alloc::vec::Vec;

use crate::sys::{Fd, Result, c_text, call, nr, open};

/// Whether there is something with this name.
pub fn exists(path: &str) -> bool {
    const PATH_ONLY: usize = 0o10000000;
    Fd::open(path, PATH_ONLY, 0).is_ok()
}

/// The names in a directory, in order; none if it cannot be read.
pub fn list(path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(directory) = Fd::open(path, open::READ | open::DIRECTORY, 0) else { return names };
    let mut buffer = [0_u64; 512];
    loop {
        let arguments = [directory.0 as usize, buffer.as_mut_ptr() as usize, 4096, 0, 0, 0];
        // SAFETY: the kernel writes at most 4096 bytes.
        let Ok(got @ 1..) = (unsafe { call(nr::GETDENTS64, arguments) }) else { break };
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).take(got).collect();
        let mut rest = &bytes[..];
        // `struct linux_dirent64`: inode, offset, length of the entry, type, name with a zero at its end.
        while let Some(head) = rest.get(..19) {
            let len = usize::from(u16::from_ne_bytes([head[16], head[17]]));
            let Some(entry) = rest.get(..len).filter(|_| len >= 19) else { break };
            let name = entry[19..].split(|byte| *byte == 0).next().unwrap_or_default();
            if let Ok(name) = core::str::from_utf8(name)
                && name != "."
                && name != ".."
            {
                names.push(String::from(name));
            }
            rest = &rest[len..];
        }
    }
    names.sort();
    names
}

/// Makes a directory.
pub fn make_directory(path: &str, mode: u32) -> Result {
    with_mode(nr::MKDIR, path, mode)
}

/// Changes the permissions of a file.
pub fn change_mode(path: &str, mode: u32) -> Result {
    with_mode(nr::CHMOD, path, mode)
}

fn with_mode(number: usize, path: &str, mode: u32) -> Result {
    let path = c_text(path)?;
    // SAFETY: the kernel reads one path, which has an end.
    unsafe { call(number, [path.as_ptr() as usize, mode as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Makes a symbolic link with this name.
pub fn symlink(target: &str, name: &str) -> Result {
    let (target, name) = (c_text(target)?, c_text(name)?);
    // SAFETY: the kernel reads two paths, which have ends.
    unsafe { call(nr::SYMLINK, [target.as_ptr() as usize, name.as_ptr() as usize, 0, 0, 0, 0]) }.map(drop)
}
