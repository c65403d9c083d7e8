//! Descriptors and manifests (OCI image specification 1.1, Content Descriptors and Image Manifest).
//!
//! Own types and not those of oci-spec: eight fields are all that is used, unknown ones are kept, and the bytes must
//! be the same for the same content on every machine (maps are sorted, fields have one order).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Error;
use super::config::Config;
use super::digest::Digest;
use super::store::Store;

/// An OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What a manifest of ours says that it is.
pub const IMAGE: &str = "application/vnd.rvmm.image.v1";
/// The configuration of an image of ours.
pub const CONFIG: &str = "application/vnd.rvmm.image.config.v1+json";
/// A kernel: ELF or bzImage.
pub const KERNEL: &str = "application/vnd.rvmm.kernel.v1";
/// An initial RAM disk.
pub const INITRAMFS: &str = "application/vnd.rvmm.initramfs.v1";
/// What a disk has above the layers before: a qcow2 file.
pub const DISK_LAYER: &str = "application/vnd.rvmm.disk.layer.v1.qcow2";
/// What memory has above the layers before.
pub const MEMORY_LAYER: &str = "application/vnd.rvmm.memory.layer.v1.qcow2";
/// Which pages the memory layers have (memory/image/index).
pub const MEMORY_INDEX: &str = "application/vnd.rvmm.memory.index.v1";
/// The state of a running machine.
pub const STATE: &str = "application/vnd.rvmm.state.v1+json";

const CREATED: &str = "org.opencontainers.image.created";
const AUTHORS: &str = "org.opencontainers.image.authors";
const DESCRIPTION: &str = "org.opencontainers.image.description";
const PARENT: &str = "org.opencontainers.image.base.digest";
const PARENT_SIZE: &str = "vnd.rvmm.parent.size";

/// The most layers of an image.
const MOST_LAYERS: usize = 4096;

/// What leads to a blob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    /// What it is.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields that others use.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Descriptor {
    /// A descriptor without notes.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.into();
        Descriptor { media_type, digest, size, annotations: BTreeMap::new(), other: BTreeMap::new() }
    }
}

/// A manifest: one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    /// What the document is.
    #[serde(rename = "mediaType", default = "manifest_type")]
    pub media_type: String,
    /// What the image is.
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// Kernel, initial RAM disk, disk layers from the bottom up, memory layers, state.
    pub layers: Vec<Descriptor>,
    /// Notes for tools; what counts is in the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

fn manifest_type() -> String {
    MANIFEST.into()
}

impl Manifest {
    /// An image of ours with this configuration, which came from `parent`.
    pub fn new(
        config: Descriptor,
        layers: Vec<Descriptor>,
        about: &Config,
        parent: Option<&Descriptor>,
    ) -> Self {
        let mut annotations = BTreeMap::new();
        let mut note = |key: &str, value: &str| {
            if !value.is_empty() {
                annotations.insert(key.to_string(), value.to_string());
            }
        };
        if let Some(last) = about.history.last() {
            note(CREATED, &last.created);
            note(AUTHORS, &last.author);
            note(DESCRIPTION, &last.comment);
        }
        if let Some(parent) = parent {
            note(PARENT, &parent.digest.to_string());
            note(PARENT_SIZE, &parent.size.to_string());
        }
        Manifest {
            schema_version: 2,
            media_type: manifest_type(),
            artifact_type: Some(IMAGE.into()),
            config,
            layers,
            annotations,
            other: BTreeMap::new(),
        }
    }

    /// Reads a document, which `what` names in errors.
    ///
    /// # Errors
    /// When it is not a manifest.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|source| Error::Form { what: what.into(), source })?;
        if manifest.schema_version != 2 {
            let reason = format!("it has schema version {} and not 2", manifest.schema_version);
            return Err(Error::invalid(what, reason));
        }
        if manifest.layers.len() > MOST_LAYERS {
            let reason = format!("it has {} layers, the most are {MOST_LAYERS}", manifest.layers.len());
            return Err(Error::invalid(what, reason));
        }
        Ok(manifest)
    }

    /// The document.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// All that it refers to.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// The layers of one kind, in order.
    pub fn of_type(&self, media_type: &str) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().filter(move |layer| layer.media_type == media_type)
    }

    /// Whether it is an image of ours and not of containers.
    pub fn is_ours(&self) -> bool {
        self.config.media_type == CONFIG
    }

    /// The manifest that it came from.
    ///
    /// # Errors
    /// When its notes are damaged.
    pub fn parent(&self) -> Result<Option<Descriptor>, Error> {
        let (Some(digest), Some(size)) = (self.annotations.get(PARENT), self.annotations.get(PARENT_SIZE))
        else {
            return Ok(None);
        };
        let size =
            size.parse().map_err(|_| Error::invalid("A manifest", "the size of its parent is no number"))?;
        Ok(Some(Descriptor::new(MANIFEST, digest.parse()?, size)))
    }
}

impl Store {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is missing, corrupt or not a manifest.
    pub fn manifest(&self, wanted: &Descriptor) -> Result<Manifest, Error> {
        Manifest::parse(&self.read_document(wanted)?, &format!("Manifest {}", wanted.digest))
    }

    /// The manifest before `image`, if it has one and that is here.
    ///
    /// # Errors
    /// When a document is damaged.
    pub fn parent(&self, image: &Descriptor) -> Result<Option<Descriptor>, Error> {
        Ok(self.manifest(image)?.parent()?.filter(|parent| self.has(&parent.digest)))
    }
}
