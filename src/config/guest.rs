//! What of a machine belongs to its guest. A machine that somebody else has saved may say this much and nothing about the host.

use super::{MachineConfig, VmConfig};
use crate::devices::virtio::{block, net, rng, vsock};

impl VmConfig {
    /// The machine as its guest sees it: with the same devices, of which none leads anywhere on the host. Drives need a disk;
    /// interfaces are on the network that needs no privileges. What is not listed here is not taken.
    #[must_use]
    pub fn as_guest_sees(&self) -> Self {
        let mut config = VmConfig::new(self.boot_source.clone());
        config.boot_source.kernel_image_path = Default::default();
        config.boot_source.initrd_path = None;
        let MachineConfig { vcpu_count, mem_size_mib, ref cpu_mask, .. } = self.machine_config;
        let cpu_mask = cpu_mask.clone();
        config.machine_config =
            MachineConfig { vcpu_count, mem_size_mib, cpu_mask, ..MachineConfig::default() };
        (config.no_reboot, config.portable) = (self.no_reboot, self.portable);
        let devices = &mut config.devices;
        let drives = self.devices.block.iter().enumerate();
        devices.block = drives.map(|(index, drive)| drive.as_guest_sees(index)).collect();
        let links = self.devices.net.iter();
        devices.net =
            links.map(|link| net::Config { guest_mac: link.guest_mac, ..net::Config::user() }).collect();
        devices.rng = self.devices.rng.iter().map(|_| rng::Config::default()).collect();
        let channels = self.devices.vsock.iter().map(|channel| channel.guest_cid);
        devices.vsock =
            channels.map(|guest_cid| vsock::Config { guest_cid, ..vsock::Config::default() }).collect();
        config
    }

    /// The machine of a snapshot that somebody else has made: as its guest sees it, over the disks that are in the snapshot, its
    /// devices under the names that they have. Other disks have no path. It has no kernel, so a restart of the guest ends it.
    #[must_use]
    pub fn as_snapshot_holds(&self) -> Self {
        let mut config = self.as_guest_sees();
        config.no_reboot = true;
        for (drive, saved) in config.devices.block.iter_mut().zip(&self.devices.block) {
            let seen = std::mem::take(drive);
            *drive = match saved.source {
                block::Source::Snapshot => block::Config {
                    serial: seen.serial,
                    io_engine: None,
                    keep_overlay: false,
                    ..saved.clone()
                },
                _ => block::Config {
                    drive_id: saved.drive_id.clone(),
                    is_root_device: saved.is_root_device,
                    is_read_only: saved.is_read_only,
                    ..seen
                },
            };
        }
        for (link, saved) in config.devices.net.iter_mut().zip(&self.devices.net) {
            link.iface_id = saved.iface_id.clone();
        }
        config
    }
}

impl block::Config {
    fn as_guest_sees(&self, index: usize) -> Self {
        block::Config {
            serial: Some(self.serial.clone().unwrap_or_else(|| self.name(index))),
            cache_type: self.cache_type,
            ..block::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn nothing_of_the_host_is_taken() {
        // All that a configuration can name.
        let config: VmConfig = serde_json::from_str(
            r#"{ "boot-source": { "kernel_image_path": "/host/kernel", "initrd_path": "/host/initrd", "boot_args": "quiet",
                                  "process": { "Cmd": ["sh"] } },
                 "machine-config": { "vcpu_count": 3, "mem_size_mib": 512, "huge_pages": "2M" },
                 "console": { "file": "/host/console" },
                 "drives": [{ "drive_id": "root", "path_on_host": "/host/disk", "base": ["/host/base"],
                              "layers": ["/host/layer"], "overlay": "/host/overlay", "backing": "/host/backing",
                              "keep_overlay": true, "cache_type": "Writethrough" }],
                 "network-interfaces": [{ "iface_id": "lan", "host_dev_name": "host-tap", "guest_mac": "02:00:00:00:00:01" },
                                        { "iface_id": "", "user": { "publish": ["2222:22"], "map_gw": true } }],
                 "entropy": { "source": "/host/secret" },
                 "vsock": { "guest_cid": 7, "uds_path": "/host/socket" } }"#,
        )
        .unwrap();
        let seen = config.as_guest_sees();
        let text = serde_json::to_string(&seen).unwrap();
        assert!(!text.contains("host/") && !text.contains("host-tap"), "{text}");
        assert!(!text.contains("2222") && !text.contains("map_gw"), "{text}");
        let (machine, boot) = (&seen.machine_config, &seen.boot_source);
        assert_eq!((machine.vcpu_count, machine.mem_size_mib, boot.boot_args.as_str()), (3, 512, "quiet"));
        assert_eq!(boot.process, config.boot_source.process);
        let devices = &seen.devices;
        assert_eq!((devices.block.len(), devices.net.len(), devices.rng.len()), (1, 2, 1));
        assert_eq!(devices.block[0].serial.as_deref(), Some("root"));
        assert_eq!(devices.block[0].cache_type, block::Cache::Writethrough);
        assert_eq!(devices.net[0].guest_mac, config.devices.net[0].guest_mac);
        assert_eq!((devices.vsock[0].guest_cid, &devices.vsock[0].uds_path), (7, &None));
        assert_eq!(seen.as_guest_sees(), seen);
        // Nor are a snapshot's own disks, whatever else is said of them.
        let mut saved = config.clone();
        saved.devices.block.push(block::Config {
            path_on_host: "/snapshot/disk-1-0".into(),
            keep_overlay: true,
            source: block::Source::Snapshot,
            ..block::Config::default()
        });
        let held = saved.as_snapshot_holds();
        let [user, own] = &held.devices.block[..] else { panic!("two disks") };
        assert_eq!((user.drive_id.as_str(), user.path_on_host.as_os_str().len()), ("root", 0));
        assert_eq!((own.path_on_host.as_path(), own.keep_overlay), (Path::new("/snapshot/disk-1-0"), false));
        assert_eq!(held.devices.net[0].iface_id, "lan");
        assert!(held.no_reboot && held.boot_source.initrd_path.is_none());
        let text = serde_json::to_string(&held).unwrap();
        assert!(!text.contains("host/") && !text.contains("host-tap") && !text.contains("2222"), "{text}");
    }
}
