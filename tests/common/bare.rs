//! The bare-metal guest of guest/bare: built when first needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::host;
use super::machine::{Ended, Machine};

/// The guest, with both boot protocols in it.
pub fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/bare");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut build = Command::new(cargo);
        // The guest has its own flags, in its own folder; cargo lets only one process build there at a time.
        build.args(["build", "--release", "--quiet", "--target-dir", "target"]).current_dir(&directory);
        for variable in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET"]
        {
            build.env_remove(variable);
        }
        let status = build.status().expect("cargo, to build the bare-metal guest");
        assert!(status.success(), "the bare-metal guest does not build");
        directory.join("target/release/bare")
    })
}

/// The guest without the PVH note, as a file in `directory`: only the Linux boot protocol is left.
pub fn kernel_without_pvh(directory: &Path) -> PathBuf {
    let path = directory.join("bare-linux");
    let (from, to) = (kernel().to_string_lossy(), path.to_string_lossy());
    host::run("objcopy", &["-R", ".note", &from, &to]);
    path
}

/// A machine that runs `test`; further words are its options.
pub fn guest(test: &str) -> Machine {
    Machine::new(kernel()).words(format!("test={test}"))
}

/// A machine that only ends, in the way that is named.
pub fn end(way: &str) -> Machine {
    guest(&format!("exit end={way}"))
}

impl Ended {
    /// The guest's test passed, and it switched itself off.
    #[track_caller]
    pub fn passed(&self, test: &str) -> &Self {
        let name = test.split(' ').next().unwrap_or_default();
        self.powered_off();
        assert!(self.out.lines().any(|line| line == format!("OK {name}")), "{test} fails\n{self}");
        self
    }
}
