//! Where the bytes of a kernel or an initial RAM disk come from, and the way straight from there into guest memory.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use crate::memory::Memory;
use crate::sys::lock;

/// A file or bytes in memory.
///
/// A file is neither mapped nor read beforehand: segments are read right into guest memory, which copies every byte
/// once and cannot fault if somebody cuts the file meanwhile.
#[derive(Debug)]
pub enum Source {
    /// A regular file and its length in bytes. The lock is around the file's position.
    File(Mutex<File>, u64),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Source {
    /// Opens the regular file at `path`. A pipe is refused without waiting for its other end.
    ///
    /// # Errors
    /// It does not open, or is a directory, a device or a pipe.
    pub fn open(path: &Path) -> io::Result<Self> {
        Source::file(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?)
    }

    /// A regular file, from its start to its present end.
    ///
    /// # Errors
    /// It is a directory, a device or a pipe.
    pub fn file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        match metadata.is_file() {
            true => Ok(Source::File(Mutex::new(file), metadata.len())),
            false if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// What `stat` says of the file now, if it is one.
    pub fn metadata(&self) -> io::Result<Option<Metadata>> {
        match self {
            Source::File(file, _) => lock(file).metadata().map(Some),
            Source::Bytes(_) => Ok(None),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Source::File(_, len) => *len,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills all of `to` from `offset` on.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file, _) => lock(file).read_exact_at(to, offset),
            Source::Bytes(bytes) => {
                to.copy_from_slice(part(bytes, offset, to.len() as u64)?);
                Ok(())
            }
        }
    }

    /// Fills as much of `to` from the start as there is; returns how much that was.
    pub fn read_some(&self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.len().min(to.len() as u64) as usize;
        self.read_at(0, &mut to[..len])?;
        Ok(len)
    }

    /// Reads a structure at `offset`.
    pub fn object<T: ByteValued>(&self, offset: u64) -> io::Result<T> {
        let mut object = T::zeroed();
        self.read_at(offset, object.as_mut_slice())?;
        Ok(object)
    }

    /// Copies `len` bytes from `offset` on to guest memory at `address`.
    pub fn copy_to(&self, memory: &Memory, address: GuestAddress, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Source::File(file, _) => fill(memory, address, &lock(file), offset, len),
            Source::Bytes(bytes) => {
                memory.write_slice(part(bytes, offset, len)?, address).map_err(io::Error::other)
            }
        }
    }
}

/// Reads until `len` bytes have come; a file system may give fewer at a time.
fn fill(memory: &Memory, address: GuestAddress, mut file: &File, offset: u64, len: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    let mut done = 0;
    while done < len {
        let place = GuestAddress(address.0.saturating_add(done));
        match memory.read_volatile_from(place, &mut file, (len - done) as usize) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count as u64,
            Err(GuestMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

fn part(bytes: &[u8], offset: u64, len: u64) -> io::Result<&[u8]> {
    let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok());
    end.and_then(|end| bytes.get(offset as usize..end)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;
    use crate::memory::{Pages, allocate};

    #[test]
    fn files_and_bytes_read_the_same() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let memory = allocate(&[(GuestAddress(0), 0x1000)], Pages::Transparent).unwrap();
        for source in [Source::file(file).unwrap(), Source::Bytes(b"0123456789".to_vec())] {
            assert_eq!(source.len(), 10);
            assert_eq!(source.object::<u16>(2).unwrap(), u16::from_le_bytes(*b"23"));
            let mut head = [0; 20];
            assert_eq!(source.read_some(&mut head).unwrap(), 10);
            source.copy_to(&memory, GuestAddress(0x10), 3, 4).unwrap();
            source.copy_to(&memory, GuestAddress(0x14), 0, 1).unwrap();
            let mut back = [0; 5];
            memory.read_slice(&mut back, GuestAddress(0x10)).unwrap();
            assert_eq!(&back, b"34560");
            for (offset, len) in [(9, 2), (11, 1), (u64::MAX, 2)] {
                assert!(source.read_at(offset, &mut vec![0; len]).is_err());
                assert!(source.copy_to(&memory, GuestAddress(0), offset, len as u64).is_err());
            }
            assert!(source.copy_to(&memory, GuestAddress(0xfff), 0, 2).is_err());
        }
    }

    #[test]
    fn only_regular_files() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [Path::new("/"), Path::new("/dev/null"), &pipe] {
            assert!(Source::open(path).is_err(), "{path:?}");
        }
    }
}
