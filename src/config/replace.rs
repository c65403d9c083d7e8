//! What can be another one when a saved machine goes on: the link of an interface, a disk, and every name of something on
//! the host that the configuration holds.

use std::path::{Path, PathBuf};

use super::VmConfig;
use crate::devices::virtio::{block, net};
use crate::options;

/// Why something could not be replaced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such device.
    #[error("The machine has no {what} `{name}`: it has {known}")]
    NoDevice {
        /// What kind of device.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Nothing has this name.
    #[error("Nothing of the machine on the host is called `{name}`: it names {known}")]
    NoName {
        /// What was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
}

fn known(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

impl VmConfig {
    /// Gives interfaces other links: each the one that is named so, else the one at its place. Their names stay, and their
    /// addresses where a link has none. A single link that leads nowhere is for all of them.
    pub fn replace_links(&mut self, links: &[net::Config]) -> Result<(), Error> {
        if let [nowhere] = links
            && nowhere.is_none()
        {
            return (0..self.devices.net.len()).try_for_each(|index| self.replace_link(index, nowhere));
        }
        links.iter().enumerate().try_for_each(|(index, link)| self.replace_link(index, link))
    }

    fn replace_link(&mut self, index: usize, link: &net::Config) -> Result<(), Error> {
        let interfaces = &mut self.devices.net;
        let names: Vec<String> = interfaces.iter().enumerate().map(|(at, link)| link.name(at)).collect();
        let name = link.name(index);
        let place = names.iter().position(|known| *known == name);
        let place = place.or_else(|| Some(index).filter(|&at| link.iface_id.is_empty() && at < names.len()));
        let Some(place) = place else {
            return Err(Error::NoDevice { what: "network interface", name, known: known(names.into_iter()) });
        };
        let interface = &mut interfaces[place];
        interface.host_dev_name = link.host_dev_name.clone();
        interface.user = link.user.clone();
        interface.guest_mac = link.guest_mac.or(interface.guest_mac);
        Ok(())
    }

    /// Puts another disk in the place of the one called `name`. How the guest sees it stays: its name, serial number and cache,
    /// and whether it can be written.
    pub fn replace_disk(&mut self, name: &str, disk: &block::Config) -> Result<(), Error> {
        let drives = &mut self.devices.block;
        let names: Vec<String> = drives.iter().enumerate().map(|(at, drive)| drive.name(at)).collect();
        let Some(place) = names.iter().position(|known| known == name) else {
            return Err(Error::NoDevice { what: "disk", name: name.into(), known: known(names.into_iter()) });
        };
        let old = std::mem::take(&mut drives[place]);
        drives[place] = block::Config {
            drive_id: old.drive_id,
            is_root_device: old.is_root_device,
            is_read_only: old.is_read_only,
            cache_type: old.cache_type,
            serial: old.serial.or_else(|| Some(name.into())),
            source: block::Source::Replacement,
            ..disk.clone()
        };
        Ok(())
    }

    /// Replaces a name of something on the host, wherever it stands: a tap, or a path that is `old` or lies in it.
    pub fn rename(&mut self, old: &str, new: &str) -> Result<(), Error> {
        let (mut found, mut names) = (false, Vec::new());
        for tap in self.devices.net.iter_mut().filter_map(|interface| interface.host_dev_name.as_mut()) {
            names.push(tap.clone());
            if tap == old {
                (*tap, found) = (new.into(), true);
            }
        }
        self.visit_paths(|path| {
            names.push(path.display().to_string());
            if let Ok(rest) = path.strip_prefix(old).map(Path::to_path_buf) {
                // Joined to nothing, a path gets a slash at its end.
                *path = if rest.as_os_str().is_empty() { new.into() } else { Path::new(new).join(rest) };
                found = true;
            }
        });
        if found {
            return Ok(());
        }
        let nearest = options::nearest(old, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let first = nearest.map(String::from);
        let others = names.iter().filter(|name| Some(*name) != first.as_ref()).cloned();
        Err(Error::NoName { name: old.into(), known: known(first.clone().into_iter().chain(others)) })
    }

    /// Makes every path on the host one that is the same wherever it is read.
    pub fn make_absolute(&mut self) {
        self.visit_paths(|path| {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        });
    }

    /// Shows every path on the host that is the user's own.
    fn visit_paths(&mut self, mut visit: impl FnMut(&mut PathBuf)) {
        visit(&mut self.boot_source.kernel_image_path);
        self.boot_source.initrd_path.iter_mut().for_each(&mut visit);
        for drive in self.devices.block.iter_mut().filter(|drive| drive.source != block::Source::Snapshot) {
            visit(&mut drive.path_on_host);
            drive.backing.iter_mut().chain(&mut drive.overlay).for_each(&mut visit);
        }
        self.devices.rng.iter_mut().for_each(|rng| visit(&mut rng.source));
        self.devices.vsock.iter_mut().filter_map(|vsock| vsock.uds_path.as_mut()).for_each(&mut visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BootSource;

    fn config() -> VmConfig {
        let mut config =
            VmConfig::new(BootSource { kernel_image_path: "/k/vmlinuz".into(), ..BootSource::default() });
        config.devices.net =
            ["tap=tap0,mac=02:00:00:00:00:01", "user,id=lan"].map(|text| text.parse().unwrap()).into();
        config.devices.block =
            ["/d/a,id=root,cache=unsafe", "/d/b,ro"].map(|text| text.parse().unwrap()).into();
        config.devices.vsock = vec!["/v".parse().unwrap()];
        config
    }

    #[test]
    fn links_by_name_and_by_place() {
        let mut config = config();
        config.replace_link(0, &"tap=t1".parse().unwrap()).unwrap();
        config.replace_link(0, &"tap=t2,id=lan,mac=02:00:00:00:00:02".parse().unwrap()).unwrap();
        let [first, second] = &config.devices.net[..] else { panic!("two interfaces") };
        assert_eq!(
            (first.host_dev_name.as_deref(), second.host_dev_name.as_deref()),
            (Some("t1"), Some("t2"))
        );
        assert_eq!(first.guest_mac, "02:00:00:00:00:01".parse().ok());
        assert_eq!((second.guest_mac, &second.user), ("02:00:00:00:00:02".parse().ok(), &None));
        config.replace_link(1, &"user".parse().unwrap()).unwrap();
        assert!(config.devices.net[1].user.is_some());
        let links =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<net::Config>>();
        let mut other = config.clone();
        other.replace_links(&links(&["tap=t3", "none"])).unwrap();
        assert_eq!((other.devices.net[0].is_none(), other.devices.net[1].is_none()), (false, true));
        other.replace_links(&links(&["none"])).unwrap();
        assert!(other.devices.net.iter().all(net::Config::is_none));
        assert_eq!(other.devices.net[0].guest_mac, config.devices.net[0].guest_mac);
        other.devices.net.clear();
        assert_eq!(other.replace_links(&links(&["none"])), Ok(()));
        for (index, link, message) in [
            (2, "user", "The machine has no network interface `eth2`: it has eth0, lan"),
            (0, "user,id=wan", "The machine has no network interface `wan`: it has eth0, lan"),
        ] {
            let error = config.replace_link(index, &link.parse().unwrap()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn disks_keep_what_the_guest_sees() {
        let mut config = config();
        config.replace_disk("vdb", &"/e/b,format=raw".parse().unwrap()).unwrap();
        config.replace_disk("root", &"/e/a,overlay".parse().unwrap()).unwrap();
        let [root, second] = &config.devices.block[..] else { panic!("two disks") };
        assert_eq!((root.path_on_host.as_path(), root.cache_type), (Path::new("/e/a"), block::Cache::Unsafe));
        assert!(root.overlay.is_some() && second.is_read_only && second.source == block::Source::Replacement);
        assert_eq!((root.serial.as_deref(), root.drive_id.as_str()), (Some("root"), "root"));
        let error = config.replace_disk("vda", &"x".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "The machine has no disk `vda`: it has root, vdb");
    }

    #[test]
    fn names_are_replaced_where_they_stand() {
        let mut config = config();
        config.devices.block[0].source = block::Source::Snapshot;
        config.rename("tap0", "tap7").unwrap();
        config.rename("/k", "/kernels").unwrap();
        config.rename("/v", "/w").unwrap();
        assert_eq!(config.devices.net[0].host_dev_name.as_deref(), Some("tap7"));
        assert_eq!(config.boot_source.kernel_image_path, Path::new("/kernels/vmlinuz"));
        assert_eq!(config.devices.vsock[0].uds_path.as_deref(), Some(Path::new("/w")));
        let error = config.rename("tap6", "x").unwrap_err().to_string();
        assert!(error.contains("names tap7, /"), "{error}");
        assert!(config.rename("/d/a", "/x").is_err(), "a disk of the snapshot has no name of the user's");
        config.rename("/d/b", "/x/b").unwrap();
        assert_eq!(config.devices.block[1].path_on_host, Path::new("/x/b"));
    }
}
