//! Every change that the store makes to its directory goes through here, so that tests can pull the plug after each of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

#[cfg(test)]
use super::fault::Fault;
use crate::sys::file::{directory_of, sync_directory};

/// Changes to files and directories.
#[derive(Clone, Default)]
pub struct Files {
    #[cfg(test)]
    fault: Option<Fault>,
}

/// A change that is about to be made. Only tests look at what it is.
#[cfg_attr(not(test), expect(dead_code))]
pub enum Change<'a> {
    /// A file's bytes.
    Write(&'a Path),
    /// A file's bytes become durable.
    Sync(&'a Path),
    /// A name goes from one file to another.
    Rename(&'a Path, &'a Path),
    /// A name goes away.
    Remove(&'a Path),
    /// A directory's names become durable.
    SyncDirectory(&'a Path),
    /// A new file.
    Create(&'a Path),
    /// A new directory.
    CreateDirectory(&'a Path),
}

impl Files {
    /// Changes that fail as `fault` says.
    #[cfg(test)]
    pub fn with(fault: Fault) -> Self {
        Files { fault: Some(fault) }
    }

    #[cfg(not(test))]
    fn before(&self, _: Change) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn before(&self, change: Change) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault.before(change))
    }

    /// Makes a directory for this user alone, durably; one that is there already is fine.
    pub fn make_directory(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.before(Change::CreateDirectory(path))?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        self.sync_directory(directory_of(path))
    }

    /// As above, with the directories that lead there.
    pub fn make_directories(&self, path: &Path) -> io::Result<()> {
        match path.parent().filter(|parent| !parent.is_dir()) {
            Some(parent) => self.make_directories(parent).and_then(|()| self.make_directory(path)),
            None => self.make_directory(path),
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Change::SyncDirectory(path))?;
        sync_directory(path)
    }

    /// Opens a file for reading and writing, which is made when it is not there.
    pub fn open(&self, path: &Path, create_new: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        self.before(Change::Create(path))?;
        if create_new {
            options.create_new(true)
        } else {
            options.create(true).truncate(false)
        };
        options.open(path)
    }

    /// Appends `bytes` at the file's position.
    pub fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.before(Change::Write(path))?;
        file.write_all(bytes)
    }

    /// Makes a file's bytes durable.
    pub fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Change::Sync(path))?;
        file.sync_all()
    }

    /// Gives a file or a directory another name, durably.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Change::Rename(from, to))?;
        fs::rename(from, to)?;
        self.sync_directory(directory_of(to))
    }

    /// Removes a file; one that is gone already is fine.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Change::Remove(path))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Replaces the file at `path` as a whole: after a crash it is the old one or the new one.
    pub fn replace(&self, path: &Path, beside: &Path, bytes: &[u8]) -> io::Result<()> {
        self.remove(beside)?;
        let mut file = self.open(beside, true)?;
        self.write(&mut file, beside, bytes)?;
        self.sync(&file, beside)?;
        self.rename(beside, path)
    }
}
