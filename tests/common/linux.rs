//! Linux guests: a stock kernel of a distribution, the initramfs and the disk that `make guest` builds, and a script.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host;
use super::machine::{Ended, Machine};

/// The longest command line that an x86 kernel takes, with some room for rvmm's own words.
const LONGEST: usize = 1900;

/// How long a guest may take: kernels run slowly in an emulator on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Words for a machine that has disks and shall stay in its initramfs.
pub const NO_ROOT: &str = "root=";

/// A file that `make guest` makes.
pub fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/out").join(name)
}

/// The stock kernel, as the distribution ships it.
pub fn kernel() -> PathBuf {
    made("vmlinuz")
}

/// A machine with the stock kernel, without disks and network, that runs a shell script and powers off.
pub fn guest(script: &str) -> Machine {
    guest_with(&kernel(), &made("initrd.img"), script)
}

/// A machine with another kernel, and the initramfs for it.
pub fn guest_with(kernel: &Path, initrd: &Path, script: &str) -> Machine {
    equip(Machine::new(kernel), initrd, script)
}

/// A machine whose network [`Machine::in_world`] knows.
pub fn guest_in_world(net: &str, prelude: &str, script: &str) -> Machine {
    equip(Machine::in_world(kernel(), net, prelude), &made("initrd.img"), script)
}

fn equip(machine: Machine, initrd: &Path, script: &str) -> Machine {
    machine.option("--initrd", initrd).words(exec(script)).limit(LIMIT)
}

/// A machine with the stock kernel that comes to a shell on its console.
pub fn shell() -> Machine {
    Machine::new(kernel()).option("--initrd", made("initrd.img")).limit(LIMIT)
}

/// A machine with the stock kernel and nothing that it could start.
pub fn alone() -> Machine {
    Machine::new(kernel()).limit(LIMIT)
}

/// The word that has guest/system run a script.
fn exec(script: &str) -> String {
    let word = format!("rvmm.exec={}", base64(script.as_bytes()));
    assert!(word.len() < LONGEST, "the script is too long for the kernel's command line");
    word
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |piece: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(*piece.get(i).unwrap_or(&0)));
        (0..4).map(move |i| DIGITS[(bits >> (18 - 6 * i)) as usize & 63])
    };
    let mut text: Vec<u8> = bytes.chunks(3).flat_map(digits).collect();
    let padding = (3 - bytes.len() % 3) % 3;
    let end = text.len() - padding;
    text[end..].fill(b'=');
    String::from_utf8(text).expect("ASCII")
}

/// A copy of the root disk of `make guest`.
pub fn root_disk(directory: &Path) -> PathBuf {
    let copy = directory.join("root.ext4");
    let (from, to) = (made("rootfs.ext4"), copy.to_string_lossy().into_owned());
    host::run("cp", &["--sparse=always", &from.to_string_lossy(), &to]);
    copy
}

impl Ended {
    /// The script ended well, and the guest switched itself off.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        self.powered_off();
        assert_eq!(self.value("RVMM-EXIT "), "0", "the script fails:\n{self}");
        self
    }
}
