//! A log of what the guest said: two files of bounded size, of which the newer one is written.
//!
//! ```text
//!   console.log ── is full ──► console.log.1, and what was that is gone
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Name of the file that is written.
pub const FILE: &str = "console.log";
/// Name of the one before.
const OLDER: &str = "console.log.1";

/// Bytes of one file.
const LIMIT: u64 = 1 << 20;

/// The writing side. The file is made with the first byte, so that a guest that says nothing costs nothing.
pub struct Log {
    directory: PathBuf,
    file: Option<(File, u64)>,
    limit: u64,
}

impl Log {
    /// A log in a directory that is the machine's own.
    pub fn new(directory: &Path) -> Self {
        Log { directory: directory.into(), file: None, limit: LIMIT }
    }

    fn file(&mut self) -> io::Result<&mut (File, u64)> {
        if self.file.as_ref().is_some_and(|(_, size)| *size >= self.limit) {
            fs::rename(self.directory.join(FILE), self.directory.join(OLDER))?;
            self.file = None;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let file = options.append(true).create(true).mode(0o600).open(self.directory.join(FILE))?;
                let size = file.metadata()?.len();
                (file, size)
            }
        };
        Ok(self.file.insert(file))
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (file, size) = self.file()?;
        let written = file.write(bytes)?;
        *size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading side: all that is kept, then what is added.
pub struct Reader {
    directory: PathBuf,
    file: Option<File>,
    /// The older file, if it was not read yet.
    older: bool,
}

impl Reader {
    /// Reads the log in this directory from its begin.
    pub fn new(directory: &Path) -> Self {
        Reader { directory: directory.into(), file: None, older: true }
    }

    /// Copies to `out` what has come since the last time.
    ///
    /// # Errors
    /// When a file cannot be read, or `out` takes nothing more.
    pub fn copy(&mut self, out: &mut impl Write) -> io::Result<()> {
        let open = |name| match File::open(self.directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        };
        let newest = open(FILE)?;
        if std::mem::take(&mut self.older)
            && let Some(mut older) = open(OLDER)?
        {
            // If the files have changed their names in between, one of them is seen here and not again.
            match identity(Some(&older))? == identity(newest.as_ref())? {
                true => self.file = Some(older),
                false => drop(io::copy(&mut older, out)?),
            }
        }
        if let Some(file) = &mut self.file {
            io::copy(file, out)?;
        }
        // A file with another name is not written any more, and all of it has been copied.
        if identity(newest.as_ref())? != identity(self.file.as_ref())?
            && let Some(mut newest) = newest
        {
            io::copy(&mut newest, out)?;
            self.file = Some(newest);
        }
        out.flush()
    }
}

fn identity(file: Option<&File>) -> io::Result<Option<(u64, u64)>> {
    file.map(|file| file.metadata().map(|found| (found.dev(), found.ino()))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader) -> String {
        let mut out = Vec::new();
        reader.copy(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keeps_the_last_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log { limit: 4, ..Log::new(directory.path()) };
        let mut reader = Reader::new(directory.path());
        assert_eq!(read(&mut reader), "");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut followed = String::new();
        for byte in b'a'..=b'k' {
            log.write_all(&[byte]).unwrap();
            followed += &read(&mut reader);
        }
        assert_eq!(followed, "abcdefghijk");
        assert_eq!(read(&mut Reader::new(directory.path())), "efghijk");
        // A machine that goes on in the same place goes on in the same file.
        let mut log = Log { limit: 4, ..Log::new(directory.path()) };
        log.write_all(b"l").unwrap();
        log.write_all(b"m").unwrap();
        assert_eq!(read(&mut Reader::new(directory.path())), "ijklm");
        assert_eq!(read(&mut reader), "lm");
    }
}
