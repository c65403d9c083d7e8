//! A directory with machines and snapshots of its own, and what can be done in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rvmm::vmm::snapshot::Restore;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::bare::guest;
use crate::common::eventually;
use crate::common::machine::{Ended, Machine, Running};

/// Everything of one test; machines that it left running in the background end with it.
pub struct World(TempDir);

impl World {
    pub fn new() -> Self {
        World(TempDir::new().expect("a scratch directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// A file of so many bytes, none of which is zero.
    pub fn raw(&self, name: &str, size: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![0xa5; size]).expect("a disk");
        path
    }

    /// Names of what is there and begins with `prefix`.
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the scratch directory").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// The machine, entered in this world.
    pub fn here(&self, machine: Machine) -> Machine {
        machine.option("--runtime-dir", self.path("run"))
    }

    /// A machine that runs `test` under a name.
    pub fn guest(&self, name: &str, test: &str) -> Machine {
        self.here(guest(test).option("--name", name).option("--stop-timeout", "0"))
    }

    /// A command, to be started.
    pub fn command_line(&self, arguments: &[&str]) -> Machine {
        // First: what follows a command that `exec` runs is for that command.
        let directory = self.text("run");
        Machine::command_line(&[&["--runtime-dir", &directory], arguments].concat())
    }

    pub fn command(&self, arguments: &[&str]) -> Ended {
        self.command_line(arguments).run()
    }

    /// A command that succeeds; what it printed.
    #[track_caller]
    pub fn does(&self, arguments: &[&str]) -> String {
        let ended = self.command(arguments);
        assert_eq!(ended.status, 0, "{arguments:?}\n{ended}");
        ended.out
    }

    /// Saves the machine `name` as `target`; what rvmm reports.
    #[track_caller]
    pub fn create(&self, name: &str, target: &str, options: &[&str]) -> Value {
        let target = self.text(target);
        let arguments = [&["snapshot", "create", name, &target, "--json"], options].concat();
        serde_json::from_str(&self.does(&arguments)).expect("a report in JSON")
    }

    /// Goes on with a snapshot, on whose console one can type.
    pub fn restore(&self, snapshot: &str, name: &str) -> Running {
        self.restore_with(snapshot, name, &[])
    }

    /// The same with more options.
    pub fn restore_with(&self, snapshot: &str, name: &str, options: &[&str]) -> Running {
        let snapshot = self.text(snapshot);
        let arguments = [&["restore", &snapshot, "--json", "--name", name], options].concat();
        self.command_line(&arguments).option("--stop-timeout", "0").stdin(Stdio::piped()).start()
    }

    /// What a machine tells of itself that runs, or is about to.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let (mut told, mut last) = (Value::Null, String::new());
        let tells = || {
            let ended = self.command(&["inspect", name]);
            told = serde_json::from_str(&ended.out).unwrap_or_default();
            last = ended.err;
            ended.status == 0
        };
        assert!(eventually(tells), "{name} is not there: {last}");
        told[0].take()
    }

    /// A 64-bit number in the guest's memory as a snapshot has it.
    pub fn captured(&self, snapshot: &str, address: u64) -> u64 {
        captured(&self.path(snapshot), address)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.command(&["stop", "--all", "--force"]);
    }
}

/// All memory that a snapshot describes.
pub fn memory(path: &Path) -> Vec<u8> {
    let restore = Restore::open(path).expect("a snapshot");
    let mut bytes = vec![0; restore.memory().ram() as usize];
    for (number, page) in bytes.as_chunks_mut::<4096>().0.iter_mut().enumerate() {
        restore.memory().read_page(number as u64, page).expect("a page");
    }
    bytes
}

pub fn captured(snapshot: &Path, address: u64) -> u64 {
    let restore = Restore::open(snapshot).expect("a snapshot");
    let mut page = [0; 4096];
    restore.memory().read_page(address / 4096, &mut page).expect("a page");
    let at = (address % 4096) as usize;
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

/// It was refused with one line that has all of `words`, and nothing else was printed.
#[track_caller]
pub fn refused(ended: &Ended, words: &[&str]) {
    let one_line = ended.err.lines().count() == 1 && ended.out.is_empty();
    assert!([1, 125].contains(&ended.status) && one_line, "a refusal in one line:\n{ended}");
    for word in words {
        assert!(ended.err.contains(word), "{word:?} is not in\n{ended}");
    }
}
