//! What `restore` and `clone` can replace in a saved machine, as it is written on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use super::output::Failure;
use crate::config::VmConfig;
use crate::console;
use crate::devices::virtio::{block, net};
use crate::options;

// Options of both.
#[derive(clap::Args)]
pub struct Replacements {
    /// Another link for a network interface: the one with id=NAME, else the first for the first interface and so on;
    /// mac=ADDRESS changes its address. `none` alone takes the link of every interface down
    #[arg(long, value_name = "user|tap=NAME[,OPTION]...|none")]
    net: Vec<net::Config>,
    /// Another disk in the place of the one that is called ID; the guest must find on it what it had there
    #[arg(long, value_name = "ID=PATH[,OPTION]...")]
    disk: Vec<Disk>,
    /// Another name for what the machine has on the host: a tap, or the path of its kernel, a disk, a socket, or a directory
    /// with some of them
    #[arg(long, value_name = "OLD=NEW")]
    rename: Vec<Rename>,
    /// The snapshot is somebody else's: take only what the guest sees and the disks in it, and nothing of this host that it names
    /// (kernel, other disks, taps, sockets, ports). Interfaces get the user's network unless `--net` says otherwise, other
    /// disks come by `--disk`, and a restart of the guest ends the machine
    #[arg(long, conflicts_with = "rename")]
    foreign: bool,
}

/// `ID=PATH[,OPTION]...`
#[derive(Clone)]
struct Disk {
    id: String,
    disk: block::Config,
}

impl FromStr for Disk {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        let (id, disk) = pair("disk", text, "ID=PATH, such as vda=/images/root.ext4")?;
        Ok(Disk { id: id.into(), disk: disk.parse()? })
    }
}

/// `OLD=NEW`
#[derive(Clone)]
struct Rename {
    old: String,
    new: String,
}

impl FromStr for Rename {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        let (old, new) = pair("rename", text, "OLD=NEW, such as tap0=tap7")?;
        Ok(Rename { old: old.into(), new: new.into() })
    }
}

fn pair<'a>(key: &str, text: &'a str, takes: &str) -> Result<(&'a str, &'a str), options::Error> {
    let pair = text.split_once('=').filter(|(first, second)| !first.is_empty() && !second.is_empty());
    pair.ok_or_else(|| options::bad_value(key, text, takes))
}

/// Marks in the words of a command for many machines, and what stands there for one of them: `%n` its name, `%i` its number.
pub struct Marks<'a>(pub &'a [(&'a str, &'a str)]);

impl Marks<'_> {
    /// `text` for this machine.
    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.into(), |text, (mark, value)| text.replace(mark, value))
    }

    fn fill_path(&self, path: &mut PathBuf) {
        if let Some(text) = path.to_str() {
            *path = self.fill(text).into();
        }
    }

    /// The console for this machine.
    pub fn console(&self, console: &console::Config) -> console::Config {
        let mut console = console.clone();
        if let console::Config::File(path) | console::Config::Socket(path) = &mut console {
            self.fill_path(path);
        }
        console
    }
}

impl Replacements {
    /// Whether an address is given that only one machine can have.
    pub fn fixes_address(&self) -> bool {
        self.net.iter().any(|link| link.guest_mac.is_some())
    }

    /// Replaces what is to be replaced for one machine.
    pub fn apply(&self, config: &mut VmConfig, marks: &Marks) -> Result<(), Failure> {
        if self.foreign {
            let console = std::mem::take(&mut config.console);
            *config = VmConfig { console, ..config.as_snapshot_holds() };
        }
        for Rename { old, new } in &self.rename {
            config.rename(old, &marks.fill(new)).map_err(Failure::usage)?;
        }
        let mut links = self.net.clone();
        for name in links.iter_mut().filter_map(|link| link.host_dev_name.as_mut()) {
            *name = marks.fill(name);
        }
        config.replace_links(&links).map_err(Failure::usage)?;
        for Disk { id, disk } in &self.disk {
            let mut disk = disk.clone();
            marks.fill_path(&mut disk.path_on_host);
            disk.overlay.iter_mut().for_each(|path| marks.fill_path(path));
            config.replace_disk(id, &disk).map_err(Failure::usage)?;
        }
        Ok(())
    }
}
