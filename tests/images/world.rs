//! A user with a store, a runtime directory and some files of their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{bare, eventually, host};

/// The size of file systems: small ones are made faster.
pub const SIZE: &str = "64M";

/// All that a test has; machines that it left running end with it.
pub struct World(TempDir);

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

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

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvmm"));
        command
            .args(arguments)
            .env("RVMM_RUNTIME_DIR", self.path("run"))
            .env("RVMM_STORE", self.path("store"))
            .env("RVMM_AUTHOR", "ada")
            .env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    pub fn says(&self, arguments: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("rvmm");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { status: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    /// A command that succeeds without a complaint; what it printed.
    #[track_caller]
    pub fn does(&self, arguments: &[&str]) -> String {
        let said = self.says(arguments);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{arguments:?}: {}", said.out);
        said.out.trim().to_string()
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let out = self.does(&[arguments, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
    }

    /// One clear line with all of `words`, and nothing else.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let said = self.says(arguments);
        let one_line = said.err.lines().count() == 1 && said.out.is_empty();
        assert!([1, 125].contains(&said.status) && one_line, "{arguments:?}: {said:?}");
        for word in words {
            assert!(said.err.contains(word), "{arguments:?}: {word:?} is not in {}", said.err);
        }
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, content).expect("a file");
        path
    }

    /// A root file system in the directory `name`.
    pub fn root(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        let file = |path: &str, mode: u32, content: &[u8]| {
            let path = self.write(&format!("{name}/{path}"), content);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        file("bin/tool", 0o4755, &(0..200_000u32).map(|i| (i / 50) as u8).collect::<Vec<_>>());
        file("etc/hosts", 0o644, b"127.0.0.1 localhost\n");
        file("etc/secret", 0o600, b"of one only");
        file(&format!("usr/{}", "long".repeat(30)), 0o644, b"a long name");
        fs::create_dir_all(root.join("usr/lib")).expect("a directory");
        symlink("usr/lib", root.join("lib")).expect("a link");
        fs::hard_link(root.join("etc/hosts"), root.join("etc/hosts2")).expect("a link");
        root
    }

    /// Imports the directory of [`World::root`] as `image`.
    #[track_caller]
    pub fn image(&self, image: &str) -> String {
        if !self.path("root").exists() {
            self.root("root");
        }
        self.does(&["import", "root", image, "--size", SIZE, "-m", "first"])
    }

    /// An image `bare:1` of the bare-metal guest: its kernel, and a disk of 1 MiB that a guest wrote with `seed=1`.
    #[track_caller]
    pub fn bare(&self) {
        self.write("disk.raw", vec![0xa5; 1 << 20]);
        let kernel = bare::kernel().to_string_lossy();
        self.does(&["import", "disk.raw", "bare:1", "--kernel", &kernel, "-m", "base"]);
    }

    /// Runs a test of the bare-metal guest on an image, in the foreground; what the guest said.
    #[track_caller]
    pub fn run(&self, image: &str, test: &str, options: &[&str]) -> String {
        let test = format!("test={test}");
        let said = self.says(&[&["run", image, "--net", "none", "--cmdline", &test], options].concat());
        assert_eq!(said.status, 0, "{image} {test}: {said:?}");
        said.out
    }

    /// Starts a machine that writes to its disk and then stands there; returns when it has written.
    #[track_caller]
    pub fn writes(&self, image: &str, name: &str, seed: u32, options: &[&str]) {
        self.starts(image, name, &format!("mode=write seed={seed} sectors=64"), options);
        self.has_said(name, "OK blk");
    }

    /// Starts a machine of `bare:1` in the background that counts for ever; returns when it does.
    #[track_caller]
    pub fn counts(&self, name: &str, options: &[&str]) {
        let console = format!("file={}", self.text(&format!("{name}.log")));
        let run = ["run", "-d", "bare:1", "--name", name, "--net", "none", "--console", &console];
        self.does(&[&run[..], &["--cmdline", "test=counter every=500"], options].concat());
        self.has_said(name, "\ncounter ");
    }

    /// Starts a machine in the background with a test of its disk, after which it stands there.
    #[track_caller]
    pub fn starts(&self, image: &str, name: &str, test: &str, options: &[&str]) {
        let test = format!("test=blk {test} end=hlt");
        let console = format!("file={}", self.text(&format!("{name}.log")));
        let run =
            ["run", "-d", image, "--name", name, "--net", "none", "--console", &console, "--cmdline", &test];
        assert_eq!(self.does(&[&run[..], options].concat()), name);
    }

    /// Waits for the console of a machine that [`World::starts`] has started.
    #[track_caller]
    pub fn has_said(&self, name: &str, text: &str) {
        let log = self.path(&format!("{name}.log"));
        let said = || fs::read_to_string(&log).unwrap_or_default();
        assert!(eventually(|| said().contains(text)), "{name} says {}", said());
    }

    /// The disk of an image has what a guest wrote with this seed, and it can be run.
    #[track_caller]
    pub fn verifies(&self, image: &str, seed: u32) {
        let test = format!("blk mode=verify seed={seed} sectors=64");
        let said = self.run(image, &test, &[]);
        assert!(said.contains("OK blk"), "{image} {seed}: {said}");
    }

    /// What is in the tar archive of an image: names, modes, links as tar tells them, without times.
    #[track_caller]
    pub fn listing(&self, image: &str) -> Vec<String> {
        self.does(&["export", image, "--format", "tar", "listed.tar"]);
        listing(&self.path("listed.tar"))
    }
}

/// What tar says of an archive, in order of paths and without times.
pub fn listing(archive: &Path) -> Vec<String> {
    let text = host::run("tar", &["--numeric-owner", "-tvf", &archive.to_string_lossy()]);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {} {}", words[5..].join(" "), words[0], words[1], words[2])
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.command(&["stop", "--all", "--force"]).output();
    }
}
