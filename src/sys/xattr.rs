//! Extended attributes of files (xattr(7)).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The names and values of a file's own attributes; a symbolic link is not followed. None where the host knows none.
///
/// # Errors
/// When the host refuses.
pub fn read(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let names = fetch(|to, len| {
        // SAFETY: `path` ends in a zero byte, and `to` has room for `len` bytes.
        unsafe { libc::llistxattr(path.as_ptr(), to.cast(), len) }
    })?;
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let text = CString::new(name)?;
        let value = fetch(|to, len| {
            // SAFETY: both strings end in a zero byte, and `to` has room for `len` bytes.
            unsafe { libc::lgetxattr(path.as_ptr(), text.as_ptr(), to.cast(), len) }
        })?;
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Calls `get` with more and more room.
fn fetch(get: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 256];
    loop {
        let len = get(bytes.as_mut_ptr(), bytes.len());
        if let Ok(len) = usize::try_from(len) {
            bytes.truncate(len);
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENODATA) => return Ok(Vec::new()),
            // The kernel's own limit is 64 KiB.
            Some(libc::ERANGE) if bytes.len() < 1 << 17 => bytes.resize(bytes.len() * 2, 0),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_has_none_of_users() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(read(file.path()).unwrap().iter().all(|(name, _)| !name.starts_with(b"user.")));
        assert_eq!(read(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
