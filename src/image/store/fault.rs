//! A power cut on paper: after the n-th change nothing works any more, and what was not durable is lost or torn.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, mem};

use super::files::Change;

/// A plug that is pulled after a number of changes.
#[derive(Clone)]
pub struct Fault(Arc<Mutex<State>>);

struct State {
    left: usize,
    /// Files whose bytes are not durable.
    unsynced: Vec<PathBuf>,
    /// Renames that are not durable: from, to, and the bytes that `to` had before.
    unsettled: Vec<(PathBuf, PathBuf, Option<Vec<u8>>)>,
    removed: HashMap<PathBuf, Vec<u8>>,
    /// Directories whose names are not durable.
    made: Vec<PathBuf>,
}

impl Fault {
    /// Lets `changes` changes happen.
    pub fn after(changes: usize) -> Self {
        Fault(Arc::new(Mutex::new(State {
            left: changes,
            unsynced: Vec::new(),
            unsettled: Vec::new(),
            removed: HashMap::new(),
            made: Vec::new(),
        })))
    }

    /// Whether the plug was pulled.
    pub fn is_over(&self) -> bool {
        self.0.lock().unwrap().left == 0
    }

    /// Called before each change.
    pub fn before(&self, change: Change) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.left == 0 {
            return Err(io::Error::other("the power is off"));
        }
        state.left -= 1;
        match change {
            Change::Create(path) | Change::Write(path) => state.unsynced.push(path.into()),
            Change::CreateDirectory(path) => state.made.push(path.into()),
            Change::Sync(path) => state.unsynced.retain(|other| other != path),
            Change::Rename(from, to) => {
                let before = fs::read(to).ok();
                if let Some(unsynced) = state.unsynced.iter_mut().find(|path| *path == from) {
                    *unsynced = to.into();
                }
                state.unsettled.push((from.into(), to.into(), before));
            }
            Change::Remove(path) => {
                if let Ok(bytes) = fs::read(path) {
                    state.removed.insert(path.into(), bytes);
                }
            }
            Change::SyncDirectory(directory) => {
                state.unsettled.retain(|(_, to, _)| to.parent() != Some(directory));
                state.removed.retain(|path, _| path.parent() != Some(directory));
                state.made.retain(|path| path.parent() != Some(directory));
            }
        }
        Ok(())
    }

    /// What a disk may hold after the power came back: bytes that were not durable are torn; with `undo`, names that
    /// were not durable are the old ones.
    pub fn lose(&self, undo: bool) {
        let mut state = self.0.lock().unwrap();
        for path in mem::take(&mut state.unsynced) {
            tear(&path);
        }
        if !undo {
            return;
        }
        for (path, bytes) in mem::take(&mut state.removed) {
            fs::write(path, bytes).unwrap();
        }
        for (from, to, before) in mem::take(&mut state.unsettled).into_iter().rev() {
            // The rename itself may have been the change that never happened.
            if !from.exists() {
                let _ = fs::rename(&to, &from);
                if let Some(bytes) = before {
                    fs::write(to, bytes).unwrap();
                }
            }
        }
        for directory in mem::take(&mut state.made) {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn tear(path: &Path) {
    if let Ok(bytes) = fs::read(path) {
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
}
