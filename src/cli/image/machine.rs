//! From an image to the machine that runs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::output::Failure;
use crate::cli::{run, store};
use crate::config::{BootSource, VmConfig};
use crate::devices::virtio::block;
use crate::image::{Config, Descriptor, Digest, INITRAMFS, KERNEL, Machine, Process, Store, Unpacked};

/// What is to run in the guest instead of what the image says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub entrypoint: Option<String>,
    pub stop_signal: Option<String>,
    pub command: Vec<String>,
}

impl Overrides {
    /// What runs then.
    pub fn over(&self, mut process: Process) -> Process {
        for new in &self.env {
            let key = |entry: &String| entry.split('=').next().map(String::from);
            process.env.retain(|old| key(old) != key(new));
            process.env.push(new.clone());
        }
        if let Some(entrypoint) = &self.entrypoint {
            process.entrypoint = if entrypoint.is_empty() { Vec::new() } else { vec![entrypoint.clone()] };
            // The arguments were those of the other program.
            process.cmd = Vec::new();
        }
        if !self.command.is_empty() {
            process.cmd = self.command.clone();
        }
        process.working_dir = self.working_dir.clone().unwrap_or(process.working_dir);
        process.user = self.user.clone().unwrap_or(process.user);
        process.stop_signal = self.stop_signal.clone().unwrap_or(process.stop_signal);
        process
    }
}

/// An image that is about to run.
pub struct Runnable {
    pub config: Config,
    pub unpacked: Option<Unpacked>,
    /// The kernel of another image.
    pub kernel: Option<Digest>,
    /// Kernel and initial RAM disk, and arguments.
    pub boot_source: BootSource,
}

impl Runnable {
    /// Unpacks an image and finds its kernel. `kernel` is one that the user gives.
    pub fn open(store: &Store, image: &Descriptor, kernel: Option<&PathBuf>) -> Result<Self, Failure> {
        let manifest = store.manifest(image).map_err(Failure::refused)?;
        let config = store.config(&manifest).map_err(Failure::refused)?;
        let unpacked = match &config.disk {
            Some(_) => Some(store.unpack(image, store::LIMIT).map_err(Failure::refused)?),
            None => None,
        };
        let own = manifest.of_type(KERNEL).next().map(|kernel| (kernel.clone(), manifest.clone()));
        let mut other = None;
        let (found, arguments) = match own {
            Some((found, _)) => (Some((found, manifest.of_type(INITRAMFS).next().cloned())), String::new()),
            None if kernel.is_some() => (None, String::new()),
            None => {
                let missing = || {
                    Failure::usage(
                        "The image has no kernel, and the store no default one: add one with `rvmm kernel add --from-package`, bring it with the image (`rvmm save --with-kernel`), or say --kernel",
                    )
                };
                let default = store.default_kernel().map_err(Failure::refused)?.ok_or_else(missing)?;
                other = Some(default.image.digest);
                (Some((default.kernel, Some(default.initramfs))), default.boot_args)
            }
        };
        let mut boot_source = BootSource::default();
        if let Some((kernel, initramfs)) = found {
            boot_source.kernel_image_path = store.blob(&kernel.digest);
            boot_source.initrd_path = initramfs.map(|found| store.blob(&found.digest));
        }
        boot_source.boot_args = [run::CMDLINE, "root=/dev/vda rw", &arguments, &config.machine.boot_args]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        Ok(Runnable { config, unpacked, kernel: other, boot_source })
    }

    /// The machine; what it writes goes to `overlay`, to stay there if `keep`.
    pub fn machine(&self, overlay: &Path, keep: bool) -> VmConfig {
        let mut config = VmConfig::new(self.boot_source.clone());
        let Machine { vcpu_count, mem_size_mib, .. } = &self.config.machine;
        let machine = &mut config.machine_config;
        machine.vcpu_count = vcpu_count.unwrap_or(machine.vcpu_count);
        machine.mem_size_mib = mem_size_mib.unwrap_or(machine.mem_size_mib);
        if let Some(unpacked) = &self.unpacked {
            config.devices.block.push(root_drive(unpacked, overlay, keep));
        }
        config
    }
}

/// The root disk of an image.
pub fn root_drive(unpacked: &Unpacked, overlay: &Path, keep: bool) -> block::Config {
    block::Config {
        path_on_host: unpacked.map.clone(),
        base: unpacked.layers.clone(),
        // That of the map is made when it is needed.
        digests: std::iter::once(&None).chain(&unpacked.digests).cloned().collect(),
        overlay: Some(overlay.into()),
        keep_overlay: keep,
        is_root_device: true,
        ..block::Config::default()
    }
}

/// A disk that the guest mounts: `DISK:TARGET[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub disk: PathBuf,
    pub target: String,
    pub read_only: bool,
}

impl std::str::FromStr for Volume {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "it is written DISK:TARGET or DISK:TARGET:ro, where TARGET is an absolute path in the guest";
        let (text, read_only) = match text.strip_suffix(":ro") {
            Some(text) => (text, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        match text.rsplit_once(':') {
            Some((disk, target)) if !disk.is_empty() && target.starts_with('/') => {
                Ok(Volume { disk: disk.into(), target: target.into(), read_only })
            }
            _ => Err(FORM),
        }
    }
}

/// The document that rvmm's init reads (guest/agent/src/container.rs).
pub fn document(
    process: &Process,
    config: &VmConfig,
    hostname: &str,
    volumes: &[Volume],
    tty: bool,
) -> serde_json::Value {
    let first = config.devices.block.len() - volumes.len();
    let mounts = volumes.iter().enumerate().map(|(index, volume)| {
        let drive = block::Config::default().name(first + index);
        json!({
            "Source": format!("/dev/{drive}"),
            "Target": volume.target,
            "Type": "ext4",
            "ReadOnly": volume.read_only,
        })
    });
    // What an image says of other things is not for the init, which has keys of its own.
    let process = Process {
        exposed_ports: BTreeMap::new(),
        labels: BTreeMap::new(),
        other: BTreeMap::new(),
        ..process.clone()
    };
    let mut document = json!(process);
    document["Hostname"] = hostname.into();
    document["Root"] = "/dev/vda".into();
    document["RootFsType"] = "ext4".into();
    document["Tty"] = tty.into();
    document["Mounts"] = mounts.collect();
    document["Network"] = if config.devices.net.is_empty() { "none" } else { "dhcp" }.into();
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let process = Process {
            env: vec!["A=1".into(), "B=2".into()],
            entrypoint: vec!["/bin/server".into(), "-v".into()],
            cmd: vec!["--port".into()],
            user: "web".into(),
            stop_signal: "SIGQUIT".into(),
            ..Process::default()
        };
        let overrides = Overrides { env: vec!["A=3".into(), "C".into()], ..Overrides::default() };
        assert_eq!(overrides.over(process.clone()).env, ["B=2", "A=3", "C"]);
        let overrides =
            Overrides { command: vec!["x".into()], user: Some("0".into()), ..Overrides::default() };
        let new = overrides.over(process.clone());
        assert_eq!((new.entrypoint.len(), new.cmd, new.user), (2, vec!["x".to_string()], "0".into()));
        assert_eq!(new.stop_signal, "SIGQUIT");
        let stop_signal = Some("2".into());
        let overrides = Overrides { entrypoint: Some("sh".into()), stop_signal, ..Overrides::default() };
        let new = overrides.over(process);
        assert_eq!((new.entrypoint, new.cmd.len()), (vec!["sh".to_string()], 0));
        assert_eq!(new.stop_signal, "2");
    }

    #[test]
    fn volumes() {
        let volume = |text: &str| text.parse::<Volume>();
        let expected = Volume { disk: "a:b.img".into(), target: "/data".into(), read_only: true };
        assert_eq!(volume("a:b.img:/data:ro"), Ok(expected));
        for bad in ["", "a", "a:b", ":/x", "a:ro"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let mut config = VmConfig::new(BootSource::default());
        config.devices.block = vec![block::Config::default(), block::Config::default()];
        let volumes = [Volume { disk: "x".into(), target: "/d".into(), read_only: false }];
        let other = [("StopTimeout", 9.into()), ("Mounts", "x".into()), ("Rows", 1.into())];
        let other = other.map(|(key, value): (_, serde_json::Value)| (key.into(), value)).into();
        let process = Process { other, ..Process::default() };
        let document = document(&process, &config, "web", &volumes, true);
        assert!(document.get("StopTimeout").is_none() && document.get("Rows").is_none(), "{document}");
        assert_eq!(document["Mounts"][0]["Source"], "/dev/vdb");
        assert_eq!((&document["Hostname"], &document["Network"]), (&"web".into(), &"none".into()));
    }
}
