//! Files as disks use them: vectored I/O at an offset, holes, locks, block devices (pread(2), fallocate(2), fcntl(2), ioctl(2)).

use std::borrow::Cow;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use libc::{c_int, c_short, iovec};

/// The most pieces that one call takes (UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

/// Scattered memory that I/O goes to or comes from.
///
/// # Safety
/// The pieces stay mapped, readable and writable while the value lives, even when it moves, and no
/// Rust reference leads to their bytes.
pub unsafe trait Pieces {
    /// The pieces in order.
    fn pieces(&self) -> &[iovec];
}

/// What one call can take of `pieces` without their first `skip` bytes.
pub(super) fn window(pieces: &[iovec], mut skip: usize) -> Cow<'_, [iovec]> {
    if skip == 0 {
        return Cow::Borrowed(&pieces[..pieces.len().min(MAX_PIECES)]);
    }
    let mut rest = Vec::new();
    for piece in pieces {
        if skip < piece.iov_len && rest.len() < MAX_PIECES {
            rest.push(iovec {
                iov_base: piece.iov_base.wrapping_byte_add(skip),
                iov_len: piece.iov_len - skip,
            });
        }
        skip = skip.saturating_sub(piece.iov_len);
    }
    Cow::Owned(rest)
}

/// Repeats a system call that a signal interrupted; a negative answer is an error.
fn retry<T: PartialOrd + Default>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        let answer = call();
        if answer >= T::default() {
            return Ok(answer);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Reads at `offset` into `to` without its first `skip` bytes, once; returns how many bytes came.
pub fn read_at(file: &File, to: &impl Pieces, skip: usize, offset: u64) -> io::Result<usize> {
    let window = window(to.pieces(), skip);
    let (pieces, count) = (window.as_ptr(), window.len() as c_int);
    // SAFETY: `window` holds `count` pieces of memory that `to` keeps mapped (trait Pieces).
    retry(|| unsafe { libc::preadv(file.as_raw_fd(), pieces, count, offset as i64) }).map(|n| n as usize)
}

/// Writes `from` without its first `skip` bytes at `offset`, once; returns how many bytes went.
pub fn write_at(file: &File, from: &impl Pieces, skip: usize, offset: u64) -> io::Result<usize> {
    let window = window(from.pieces(), skip);
    let (pieces, count) = (window.as_ptr(), window.len() as c_int);
    // SAFETY: as in `read_at`; the kernel only reads the pieces.
    retry(|| unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, offset as i64) }).map(|n| n as usize)
}

/// What to do with a range of a file; its size stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// Give the blocks back; the range reads as zeroes.
    Punch,
    /// Keep the blocks; the range reads as zeroes.
    Zero,
}

impl Hole {
    /// The mode of fallocate(2).
    pub(super) fn mode(self) -> c_int {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Hole::Punch => libc::FALLOC_FL_PUNCH_HOLE,
                Hole::Zero => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// Makes a hole. File systems and block devices that cannot answer EOPNOTSUPP ([`is_unsupported`]).
pub fn make_hole(file: &File, hole: Hole, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    retry(|| unsafe { libc::fallocate(file.as_raw_fd(), hole.mode(), offset as i64, len as i64) }).map(drop)
}

/// Whether the host said that it cannot do this to this file at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV))
}

/// Tells a block device that a range is not needed any more. The range may read as anything afterwards.
pub fn discard_blocks(device: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers, which `range` holds.
    retry(|| unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) }).map(drop)
}

// From linux/fs.h: _IO and _IOR of type 0x12. libc names only some of them.
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKPBSZGET: libc::c_ulong = 0x127b;

/// Size of a block device in bytes.
pub fn block_device_size(device: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one 64-bit number.
    retry(|| unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &mut size) })?;
    Ok(size)
}

/// Physical block size of a block device in bytes.
pub fn physical_block_size(device: &File) -> io::Result<u32> {
    let mut size: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int.
    retry(|| unsafe { libc::ioctl(device.as_raw_fd(), BLKPBSZGET, &mut size) })?;
    Ok(size)
}

/// The first byte at or after `offset` that is not in a hole; `None` if there is only a hole.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    // SAFETY: the call takes no pointers. It moves the file's position, which nobody uses.
    match retry(|| unsafe { libc::lseek(file.as_raw_fd(), offset as i64, libc::SEEK_DATA) }) {
        Ok(data) => Ok(Some(data as u64)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        // A file system that knows no holes.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(offset)),
        Err(error) => Err(error),
    }
}

/// Where the next hole begins, at `offset` or later; the end of the file is one.
pub fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    // SAFETY: the call takes no pointers. It moves the file's position, which nobody uses.
    match retry(|| unsafe { libc::lseek(file.as_raw_fd(), offset as i64, libc::SEEK_HOLE) }) {
        Ok(hole) => Ok(hole as u64),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => length(file),
        Err(error) => Err(error),
    }
}

/// Has the kernel read a range of a file, before somebody waits for it. It reads no more than it would read ahead by itself
/// at once, so the range should be as short as [`AHEAD`].
pub fn read_ahead(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let advice = libc::POSIX_FADV_WILLNEED;
    // SAFETY: the call takes no pointers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// See [`read_ahead`]: what the kernel does by default.
pub const AHEAD: u64 = 128 << 10;

/// Bytes that a user may still write to the file system of a file (fstatvfs(3)).
pub fn room(file: &File) -> io::Result<u64> {
    // SAFETY: all-zero is a valid statvfs.
    let mut found: libc::statvfs = unsafe { zeroed() };
    // SAFETY: the kernel writes to `found` alone.
    retry(|| unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut found) })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes in a regular file or on a block device.
pub fn length(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    match metadata.file_type().is_block_device() {
        true => block_device_size(file),
        false => Ok(metadata.len()),
    }
}

/// The directory that a path is in: the one where this process is, for a name alone.
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Copies a file into an empty one, holes as holes.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    let len = length(from)?;
    to.set_len(len)?;
    let mut at = 0;
    while let Some(start) = next_data(from, at)?.filter(|&start| start < len) {
        let end = next_hole(from, start)?.min(len);
        copy_range(from, start, to, start, end - start)?;
        at = end;
    }
    Ok(())
}

/// Copies `len` bytes between files, in the kernel or sharing blocks where that is possible.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, len: u64) -> io::Result<()> {
    let (mut from_at, mut to_at, mut left) = (from_at as i64, to_at as i64, len as usize);
    while left > 0 {
        // SAFETY: both offsets are ours and live until after the call.
        let copied = retry(|| unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, left, 0)
        });
        match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => left -= count as usize,
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
                ) =>
            {
                return copy_bytes(from, from_at as u64, to, to_at as u64, left);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, mut from_at: u64, to: &File, mut to_at: u64, mut left: usize) -> io::Result<()> {
    let mut buffer = vec![0; left.min(1 << 20)];
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 20)];
        from.read_exact_at(part, from_at)?;
        to.write_all_at(part, to_at)?;
        (from_at, to_at, left) = (from_at + part.len() as u64, to_at + part.len() as u64, left - part.len());
    }
    Ok(())
}

/// Gives an open file another name, `path`, on the same file system; it may have had none (linkat(2)).
pub fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    let here = libc::AT_FDCWD;
    // SAFETY: both are C strings that live until after the call.
    let linked = unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    if linked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens a file again for reading, by whatever name or none: locks and position are its own, also after a fork.
pub fn reopen(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// How a file is shared with other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Any number of readers, no writer.
    Shared,
    /// Nobody else.
    Exclusive,
}

/// Takes a lock on the whole file that lives as long as this open file does (F_OFD_SETLK).
/// Returns `false` if somebody else holds one that conflicts.
pub fn lock(file: &File, lock: Lock) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid flock.
    let mut request: libc::flock = unsafe { zeroed() };
    request.l_type = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    } as c_short;
    request.l_whence = libc::SEEK_SET as c_short;
    // SAFETY: F_OFD_SETLK reads one flock.
    match retry(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lock back before the file is closed, which may take a moment while the kernel uses it.
pub fn unlock(file: &File) {
    // SAFETY: all zeroes is a valid flock.
    let mut request: libc::flock = unsafe { zeroed() };
    request.l_type = libc::F_UNLCK as c_short;
    // SAFETY: F_OFD_SETLK reads one flock.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) };
}

/// Whether this user can write to a file, or make files in a directory (access(2)).
pub fn can_write(path: &Path) -> bool {
    // SAFETY: the path is a C string that lives until after the call.
    CString::new(path.as_os_str().as_bytes())
        .is_ok_and(|path| unsafe { libc::access(path.as_ptr(), libc::W_OK) } == 0)
}

/// Whether `path` leads to this open file, and not to another one or to none.
pub fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: io::Result<Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    identity(file.metadata()).is_some_and(|this| Some(this) == identity(fs::metadata(path)))
}

/// Whether two open files are the same one.
pub fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().ok().map(|found| (found.dev(), found.ino()));
    identity(one).is_some_and(|this| Some(this) == identity(other))
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames `from` to `to`, which must not be there (renameat2(2), RENAME_NOREPLACE).
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to, libc::RENAME_NOREPLACE)
}

/// Gives each of two files the name of the other, at once (renameat2(2), RENAME_EXCHANGE).
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    rename(one, other, libc::RENAME_EXCHANGE)
}

fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (from, to) = (c_path(from)?, c_path(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: both are C strings that live until after the call.
    let renamed = unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) };
    if renamed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(base: usize, len: usize) -> iovec {
        iovec { iov_base: base as *mut _, iov_len: len }
    }

    fn plain(pieces: &[iovec]) -> Vec<(usize, usize)> {
        pieces.iter().map(|piece| (piece.iov_base as usize, piece.iov_len)).collect()
    }

    #[test]
    fn windows_skip_bytes_and_empty_pieces() {
        let pieces = [piece(0x1000, 4), piece(0x2000, 0), piece(0x3000, 2)];
        assert_eq!(plain(&window(&pieces, 0)).len(), 3);
        assert_eq!(plain(&window(&pieces, 3)), [(0x1003, 1), (0x3000, 2)]);
        assert_eq!(plain(&window(&pieces, 4)), [(0x3000, 2)]);
        assert_eq!(plain(&window(&pieces, 6)), []);
    }

    #[test]
    fn windows_are_as_small_as_the_kernel_wants() {
        let pieces: Vec<_> = (0..3000).map(|i| piece(0x1000 + i, 1)).collect();
        assert_eq!(window(&pieces, 0).len(), MAX_PIECES);
        assert_eq!(plain(&window(&pieces, 1500))[0], (0x1000 + 1500, 1));
        assert_eq!(window(&pieces, 2500).len(), 500);
    }

    #[test]
    fn locks_conflict_between_opens() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (a, b) = (open(), open());
        assert!(lock(&a, Lock::Shared).unwrap() && lock(&b, Lock::Shared).unwrap());
        assert!(!lock(&a, Lock::Exclusive).unwrap());
        drop(b);
        assert!(lock(&a, Lock::Exclusive).unwrap());
        assert!(!lock(&open(), Lock::Shared).unwrap());
    }
}
