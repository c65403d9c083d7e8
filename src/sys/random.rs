//! Random bytes from the host's kernel (`getrandom(2)`).

use std::io;

/// Fills `bytes` with random bytes.
///
/// # Errors
/// Only where the system call itself is forbidden.
pub fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `bytes.len()` bytes to the buffer that `bytes` borrows.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = &mut bytes[got..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}
