//! A user with a store, a place for logins and the rvmm that is tested.

use std::io::Write;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use rvmm::disk::State;
use rvmm::image::{Change, Commit, Descriptor, Digest, Name, STATE, Store};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::machine::{Ended, Machine};
use crate::common::noise::noise;

/// A user.
pub struct Home {
    directory: TempDir,
}

impl Home {
    pub fn new() -> Self {
        Home { directory: TempDir::new().expect("a scratch directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The store, opened by the library.
    pub fn store(&self) -> Store {
        Store::open(&self.path("store")).expect("a store")
    }

    /// A command that does not run yet.
    pub fn command(&self, arguments: &[&str]) -> Machine {
        Machine::command_line(arguments)
            .option("--store", self.path("store"))
            .env("HOME", self.directory.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("DOCKER_CONFIG", self.path("docker"))
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).run()
    }

    /// A command that succeeds, with what it says in JSON.
    #[track_caller]
    pub fn told(&self, arguments: &[&str]) -> Value {
        let ended = self.command(arguments).arg("--json").run();
        assert_eq!(ended.status, 0, "{arguments:?}\n{ended}");
        serde_json::from_str(&ended.out).expect("JSON")
    }

    /// A version of an image with `size` bytes of noise on its disk.
    pub fn version(&self, name: &str, parent: Option<&Descriptor>, seed: u64, size: usize) -> Descriptor {
        let store = self.store();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&noise(seed, size)).expect("room");
        let about = Commit { parent, message: "noise", ..Commit::new(UNIX_EPOCH) };
        let change = Change { file: &file, size: 64 << 20, changes: vec![(0..size as u64, State::Data)] };
        let mut lease = store.lease().expect("a lease");
        let image = store.commit(&mut lease, &about, Some(&change)).expect("an image");
        store.tag(&name.parse::<Name>().expect("a name"), &image).expect("a tag");
        image
    }

    /// An image with the state of a running machine.
    pub fn warm(&self, name: &str) -> Descriptor {
        let store = self.store();
        let mut lease = store.lease().expect("a lease");
        let state = store.put(&mut lease, STATE, b"{}").expect("a blob");
        let about = Commit { blobs: &[state], ..Commit::new(UNIX_EPOCH) };
        let image = store.commit(&mut lease, &about, None).expect("an image");
        store.tag(&name.parse::<Name>().expect("a name"), &image).expect("a tag");
        image
    }

    /// The digest of an image, if there is one of this name; everything that it leads to is whole then.
    #[track_caller]
    pub fn digest(&self, name: &str) -> Option<Digest> {
        let wrong = self.store().verify(|_| {}).expect("a store");
        assert!(wrong.is_empty(), "{wrong:?}");
        self.store().resolve(name).ok().map(|image| image.digest)
    }
}
