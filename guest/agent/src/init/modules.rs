//! Drivers that are modules, of those that the initramfs has: what the devices and file systems of this machine need (`finit_module(2)`).
//!
//! ```text
//!   /rvmm/modules        lines "CONDITION FILE...": loaded at once, in order
//!   /rvmm/modules.late   the same: loaded when the command runs already
//!
//!   CONDITION   always │ virtio:0x0001, the ID of a virtio device │ acpi:PNP0C0C, that of an ACPI device │ fs:ext4
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent::container::Mount;

use super::complain;
use crate::sys::{self, Errno, Fd, call, nr, open};
use crate::tree;

const DIRECTORY: &str = "/rvmm";
const EXISTS: Errno = Errno(17);
const NO_DEVICE: Errno = Errno(19);

/// Modules that are still to be loaded, open: their files are out of reach once there is another root.
pub struct Modules(Vec<(String, Fd)>);

impl Modules {
    /// Loads what the devices and `mounts` need.
    pub fn load<'a>(mounts: impl Iterator<Item = &'a Mount>) -> Self {
        let kinds: Vec<&str> = mounts.map(|mount| &mount.kind[..]).collect();
        let mut wanted = Wanted { kinds, devices: None };
        wanted.each("modules", load);
        let mut late = Vec::new();
        wanted.each("modules.late", |name, file| late.push((name.into(), file)));
        Modules(late)
    }

    /// Loads all of them at once.
    pub fn load_all(mount: &Mount) {
        Modules::load(core::iter::once(mount)).finish();
    }

    /// Loads those that had time.
    pub fn finish(self) {
        self.0.into_iter().for_each(|(name, file)| load(&name, file));
    }
}

/// One that fails does not stop the others.
fn load(name: &str, file: Fd) {
    // SAFETY: the kernel reads the empty text of parameters.
    let result = unsafe { call(nr::FINIT_MODULE, [file.0 as usize, c"".as_ptr() as usize, 0, 0, 0, 0]) };
    if let Err(error) = result
        && error != EXISTS
        && error != NO_DEVICE
    {
        complain(&format!("cannot load module {name}: {error}"));
    }
}

struct Wanted<'a> {
    kinds: Vec<&'a str>,
    /// Looked up when the first condition asks, which is when the bus has its driver.
    devices: Option<Vec<String>>,
}

impl Wanted<'_> {
    fn each(&mut self, list: &str, mut take: impl FnMut(&str, Fd)) {
        let list = sys::read_file(&format!("{DIRECTORY}/{list}")).unwrap_or_default();
        for line in list.lines() {
            let mut words = line.split(' ');
            if !words.next().is_some_and(|condition| self.holds(condition)) {
                continue;
            }
            for name in words {
                match Fd::open(&format!("{DIRECTORY}/{name}"), open::READ, 0) {
                    Ok(file) => take(name, file),
                    Err(error) => complain(&format!("cannot open module {name}: {error}")),
                }
            }
        }
    }

    fn holds(&mut self, condition: &str) -> bool {
        match condition.split_once(':') {
            Some(("fs", kind)) => self.kinds.contains(&kind),
            Some(_) => self.devices.get_or_insert_with(devices).iter().any(|device| device == condition),
            None => condition == "always",
        }
    }
}

/// The devices that there are, as conditions name them.
fn devices() -> Vec<String> {
    let mut found = Vec::new();
    for (bus, file) in [("virtio", "device"), ("acpi", "hid")] {
        let directory = format!("/sys/bus/{bus}/devices");
        for device in tree::list(&directory) {
            if let Ok(id) = sys::read_file(&format!("{directory}/{device}/{file}")) {
                found.push(format!("{bus}:{}", id.trim()));
            }
        }
    }
    found
}
