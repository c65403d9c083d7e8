//! What a user asks for when attaching a disk: Firecracker's names in files, `PATH,key=value` on the command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Block;
use crate::devices::virtio::{self, Context, Error, VirtioDevice};
use crate::disk::{self, Engine, Format, Opened, Place};
use crate::options::{self, Options};
use crate::sys::file;

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the disk in messages and requests; by its place (`vda`, `vdb`) if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drive_id: String,
    /// A regular file or a block device.
    pub path_on_host: PathBuf,
    /// The guest's root file system is on it.
    #[serde(default)]
    pub is_root_device: bool,
    /// The guest cannot write; several machines may share the disk.
    #[serde(default)]
    pub is_read_only: bool,
    /// When the guest's writes reach the disk.
    #[serde(default)]
    pub cache_type: Cache,
    /// How the host does I/O; the best that works if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<Engine>,
    /// How the bytes are laid out in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What a qcow2 disk stands on, instead of what its header names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<PathBuf>,
    /// Keep what the guest writes here and leave the disk as it is: in this file, which is made if need be, or
    /// without a name in this directory, to be gone with the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
    /// Layers of an image, the lowest first: `path_on_host` is their map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<PathBuf>,
    /// Sealed overlays over the disk, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<PathBuf>,
    /// What the guest reads as the disk's serial number, up to 20 bytes; `drive_id` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Leave what was written since the first snapshot beside the disk when the machine ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_overlay: bool,
    /// Where the path comes from.
    #[serde(skip)]
    pub source: Source,
    /// Digests of what a snapshot's files have in them, the lowest first, as far as they are known.
    #[serde(skip)]
    pub digests: Vec<Option<String>>,
    /// A snapshot's files.
    #[serde(skip)]
    pub opened: Opened,
}

impl virtio::Config for Config {
    fn open(&self, context: &Context) -> Result<Box<dyn VirtioDevice>, Error> {
        let name = self.name(context.index);
        let device = format!("disk {name} ({})", self.path_on_host.display());
        let open = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let serial = self.serial.as_ref().unwrap_or(&name);
            let disk = disk::open(&self.disk())?;
            let mut block =
                Block::new(disk, name.clone(), serial, self.cache_type, context.notifier.clone())?;
            block.source = self.source;
            Ok(block)
        };
        match open() {
            Ok(block) => Ok(Box::new(block)),
            Err(source) => Err(Error { device, source }),
        }
    }
}

/// Where the path of a disk comes from, which decides what a restored machine may expect of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The user, who is to leave the disk as it is while there are snapshots of machines that only read it.
    #[default]
    User,
    /// A snapshot, of which the disk is a part.
    Snapshot,
    /// The user, instead of what a snapshot says: it is taken as it is.
    Replacement,
}

/// When a write is on the disk for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// When the guest has flushed: what it promised its file systems.
    #[default]
    Writeback,
    /// When it is complete: slow.
    Writethrough,
    /// Some time: flushes do nothing, and a crash of the host loses data. Fast, for what can be made again.
    Unsafe,
}

const KEYS: [&str; 11] =
    ["ro", "rw", "overlay", "keep-overlay", "root", "id", "format", "backing", "cache", "engine", "serial"];

/// Where overlays without a name are, unless told otherwise: on a disk, not in memory.
const SCRATCH: &str = "/var/tmp";

/// Where overlays without a name over a snapshot's disks are: on its file system, where they can become layers by a link,
/// or elsewhere if nothing can be written there.
pub fn scratch(snapshot: &Path) -> PathBuf {
    if file::can_write(snapshot) { snapshot.into() } else { SCRATCH.into() }
}

impl FromStr for Config {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        let options = Options::parse(text, &KEYS)?;
        if options.first.is_empty() {
            return Err(options::Error::Missing { what: "path of a disk" });
        }
        let mut config = Config { path_on_host: options.first.into(), ..Config::default() };
        for &(key, value) in &options.pairs {
            match key {
                "ro" => config.is_read_only = options::switch(key, value)?,
                "rw" => config.is_read_only = !options::switch(key, value)?,
                "overlay" => config.overlay = Some(value.unwrap_or(SCRATCH).into()),
                "keep-overlay" => config.keep_overlay = options::switch(key, value)?,
                "backing" => config.backing = Some(options::required(key, value, "a path")?.into()),
                "root" => config.is_root_device = options::switch(key, value)?,
                "id" => config.drive_id = options::required(key, value, "a name")?.into(),
                "serial" => config.serial = Some(options::required(key, value, "up to 20 bytes")?.into()),
                "format" => {
                    config.format = Some(choice(key, value, &[("raw", Format::Raw), ("qcow2", Format::Qcow2)])?);
                }
                "engine" => {
                    config.io_engine =
                        Some(choice(key, value, &[("uring", Engine::Uring), ("sync", Engine::Sync)])?);
                }
                _ => {
                    let modes = [
                        ("writeback", Cache::Writeback),
                        ("writethrough", Cache::Writethrough),
                        ("unsafe", Cache::Unsafe),
                    ];
                    config.cache_type = choice(key, value, &modes)?;
                }
            }
        }
        Ok(config)
    }
}

/// One of several words.
fn choice<T: Copy>(key: &str, value: Option<&str>, choices: &[(&str, T)]) -> Result<T, options::Error> {
    let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
    let takes = words.join(" or ");
    let value = options::required(key, value, &takes)?;
    match choices.iter().find(|(word, _)| *word == value) {
        Some((_, choice)) => Ok(*choice),
        None => Err(options::bad_value(key, value, &takes)),
    }
}

impl Config {
    /// The disk's name in messages; `index` is its place among the disks.
    pub fn name(&self, index: usize) -> String {
        if !self.drive_id.is_empty() {
            return self.drive_id.clone();
        }
        // As Linux counts: vda to vdz, then vdaa.
        let (mut letters, mut rest) = (Vec::new(), index + 1);
        while rest > 0 {
            rest -= 1;
            letters.push(char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        format!("vd{}", letters.iter().rev().collect::<String>())
    }

    /// The host's side of it.
    pub fn disk(&self) -> disk::Config {
        disk::Config {
            read_only: self.is_read_only,
            format: self.format,
            engine: self.io_engine,
            backing: self.backing.clone(),
            base: self.base.clone(),
            layers: self.layers.clone(),
            keep_overlay: self.keep_overlay,
            snapshot: (self.source == Source::Snapshot).then(|| self.opened.clone()),
            digests: self.digests.clone(),
            overlay: self.overlay.as_ref().map(|path| match self.source == Source::Snapshot || path.is_dir() {
                true => Place::Nameless(path.clone()),
                false => Place::File(path.clone()),
            }),
            ..disk::Config::new(&self.path_on_host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line() {
        let config: Config = "/a b.img,ro,id=root,format=raw,cache=unsafe,engine=sync,serial=x,backing=b,overlay=o".parse().unwrap();
        let expected = Config {
            drive_id: "root".into(),
            path_on_host: "/a b.img".into(),
            is_read_only: true,
            cache_type: Cache::Unsafe,
            io_engine: Some(Engine::Sync),
            format: Some(Format::Raw),
            backing: Some("b".into()),
            overlay: Some("o".into()),
            serial: Some("x".into()),
            ..Config::default()
        };
        assert_eq!(config, expected);
        let config: Config = "a,overlay".parse().unwrap();
        assert_eq!(config.disk().overlay, Some(Place::Nameless("/var/tmp".into())));
        for (bad, message) in [
            ("", "A path of a disk is missing"),
            ("a,format=vmdk", "Option `format` cannot be `vmdk`: it takes raw or qcow2"),
            ("a,cache", "Option `cache` takes writeback or writethrough or unsafe"),
            ("a,r", "Unknown option `r`, did you mean `ro`? Known are: ro, rw, overlay, keep-overlay, root, id, format, backing, cache, engine, serial"),
        ] {
            assert_eq!(bad.parse::<Config>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn firecrackers_json() {
        let json = r#"{"drive_id": "rootfs", "path_on_host": "r.ext4", "is_root_device": true,
                       "is_read_only": false, "cache_type": "Unsafe", "io_engine": "Async"}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        let expected = Config {
            drive_id: "rootfs".into(),
            path_on_host: "r.ext4".into(),
            is_root_device: true,
            cache_type: Cache::Unsafe,
            io_engine: Some(Engine::Uring),
            ..Config::default()
        };
        assert_eq!(config, expected);
        let again: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(serde_json::from_str::<Config>(r#"{"path_on_host": "r", "rate_limiter": {}}"#).is_err());
    }

    #[test]
    fn names_as_linux_counts() {
        for (index, name) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz"), (702, "vdaaa")] {
            assert_eq!(Config::default().name(index), name);
        }
    }
}
