//! The configuration of an image: the machine, what runs in it, and how it came to be (modelled on OCI image specification 1.1, Image Configuration).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Error;
use super::digest::{Digest, Hasher};
use super::manifest::{CONFIG, DISK_LAYER, Manifest};
use super::store::Store;

/// The largest disk: what a qcow2 layer of ours describes with tables that fit in memory.
pub const MAX_DISK: u64 = 64 << 40;

/// All that an image says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// When it was made (RFC 3339).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The CPU's architecture, in Go's words as OCI has them.
    #[serde(default = "amd64")]
    pub architecture: String,
    /// The guest's system.
    #[serde(default = "linux")]
    pub os: String,
    /// The machine.
    #[serde(default)]
    pub machine: Machine,
    /// What runs in it.
    #[serde(default)]
    pub config: Process,
    /// The root disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Every version, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Version>,
    /// Fields that others use.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

fn amd64() -> String {
    "amd64".into()
}

fn linux() -> String {
    "linux".into()
}

impl Default for Config {
    fn default() -> Self {
        Config {
            created: String::new(),
            author: String::new(),
            architecture: amd64(),
            os: linux(),
            machine: Machine::default(),
            config: Process::default(),
            disk: None,
            history: Vec::new(),
            other: BTreeMap::new(),
        }
    }
}

/// The machine that an image wants; what is not said is the user's or rvmm's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u32>,
    /// RAM in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// The guest's kernel command line, as far as the image decides it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_args: String,
}

/// What runs in the guest, in OCI's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Process {
    /// Who runs it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    pub env: Vec<String>,
    /// What is always run.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    pub entrypoint: Vec<String>,
    /// Its arguments, unless the user gives others.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    pub cmd: Vec<String>,
    /// Where it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// How it is asked to end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// `80/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_empty")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_empty")]
    pub labels: BTreeMap<String, String>,
    /// What containers know and machines do not, such as `Volumes`: it is kept for those.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Docker writes `null` for what is empty.
fn or_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its size in bytes.
    pub size: u64,
    /// What is in each layer, whatever way it is packed, from the bottom up ([`super::layer`]).
    pub diff_ids: Vec<Digest>,
}

impl Disk {
    /// What all layers together are.
    pub fn chain_id(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(format!("rvmm chain 1\n{}\n", self.size).as_bytes());
        self.diff_ids.iter().for_each(|id| hasher.update(format!("{id}\n").as_bytes()));
        hasher.digest()
    }
}

/// One version in an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// By which command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// The manifest it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// It added nothing to the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl Config {
    /// Reads a document, which `what` names in errors.
    ///
    /// # Errors
    /// When it is not a configuration.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let config: Config =
            serde_json::from_slice(bytes).map_err(|source| Error::Form { what: what.into(), source })?;
        if let Some(disk) = &config.disk
            && (disk.size == 0 || disk.size > MAX_DISK || !disk.size.is_multiple_of(512))
        {
            return Err(Error::invalid(what, format!("no disk has {} bytes", disk.size)));
        }
        Ok(config)
    }

    /// The document.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Store {
    /// Reads the configuration of an image of ours.
    ///
    /// # Errors
    /// When it is missing, corrupt or not a configuration.
    pub fn config(&self, manifest: &Manifest) -> Result<Config, Error> {
        let what = format!("Configuration {}", manifest.config.digest);
        if manifest.config.media_type != CONFIG {
            return Err(Error::invalid(what, "it is of a container image: import it"));
        }
        let config = Config::parse(&self.read_document(&manifest.config)?, &what)?;
        let (ids, layers) = (
            config.disk.as_ref().map_or(0, |disk| disk.diff_ids.len()),
            manifest.of_type(DISK_LAYER).count(),
        );
        if ids != layers {
            return Err(Error::invalid(what, format!("it has {ids} disk layers and its manifest {layers}")));
        }
        Ok(config)
    }
}
