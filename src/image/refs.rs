//! Names of images in the store: `index.json` (OCI image specification 1.1, Image Index; annotation org.opencontainers.image.ref.name).

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::Error;
use super::digest::Digest;
use super::manifest::{Descriptor, INDEX, MANIFEST, Manifest};
use super::name::Name;
use super::store::{Hold, MAX_DOCUMENT, Store};
use crate::options::nearest;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The fewest digits that mean a digest.
const SHORTEST: usize = 6;

/// The whole document; what this version does not know stays in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType", default = "media_type")]
    media_type: String,
    /// Every image, by name.
    pub manifests: Vec<Descriptor>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

fn media_type() -> String {
    INDEX.into()
}

impl Default for Index {
    fn default() -> Self {
        Index { schema_version: 2, media_type: media_type(), manifests: Vec::new(), other: BTreeMap::new() }
    }
}

impl Index {
    /// Reads a document.
    ///
    /// # Errors
    /// When it has not the form of an index.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let index: Index =
            serde_json::from_slice(bytes).map_err(|source| Error::Form { what: what.into(), source })?;
        match index.schema_version {
            2 => Ok(index),
            version => Err(Error::invalid(what, format!("it has schema version {version} and not 2"))),
        }
    }

    /// The document.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The name that an entry has.
    pub fn name_of(entry: &Descriptor) -> Option<&str> {
        entry.annotations.get(REF_NAME).map(String::as_str)
    }

    /// The entry with this name.
    pub fn get(&self, name: &str) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| Index::name_of(entry) == Some(name))
    }

    /// The only entry, or the one with the name `wanted`, with or without the repository before its tag.
    pub fn choose(&self, wanted: Option<&str>) -> Option<&Descriptor> {
        match wanted {
            Some(wanted) => self.manifests.iter().find(|entry| {
                let name = Index::name_of(entry);
                name == Some(wanted) || name == wanted.rsplit_once(':').map(|(_, tag)| tag)
            }),
            None => self.manifests.first().filter(|_| self.manifests.len() == 1),
        }
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.manifests.iter().filter_map(Index::name_of).map(String::from).collect()
    }

    /// The entry for this kind of machine, in an index of several.
    pub fn amd64(&self) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| {
            let platform = entry.other.get("platform");
            platform.is_some_and(|platform| platform["architecture"] == "amd64" && platform["os"] == "linux")
        })
    }

    /// Gives `manifest` a name, which another one may have had.
    pub fn set(&mut self, name: &str, manifest: &Descriptor) {
        self.remove(name);
        let mut entry = manifest.clone();
        entry.annotations.insert(REF_NAME.into(), name.into());
        self.manifests.push(entry);
        self.manifests.sort_by(|a, b| Index::name_of(a).cmp(&Index::name_of(b)));
    }

    /// Takes a name away; returns whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.manifests.len();
        self.manifests.retain(|entry| Index::name_of(entry) != Some(name));
        self.manifests.len() < before
    }
}

impl Store {
    /// All images with their names, as they were at one moment.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn read_index(&self) -> Result<Index, Error> {
        let path = self.index();
        let reading = || Error::io("read", &path);
        match std::fs::metadata(&path) {
            Ok(found) if found.len() > MAX_DOCUMENT => {
                return Err(Error::TooLarge { what: path.display().to_string(), limit: MAX_DOCUMENT });
            }
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(reading()(source)),
            _ => {}
        }
        Index::parse(&std::fs::read(&path).map_err(reading())?, &path.display().to_string())
    }

    /// Gives an image a name, if all its blobs are there. The image that had the name goes on without.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], when the manifest is damaged, or when the host refuses.
    pub fn tag(&self, name: &Name, manifest: &Descriptor) -> Result<(), Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let whole = self.manifest(manifest)?;
        for blob in whole.blobs() {
            let path = self.blob(&blob.digest);
            match std::fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::MissingBlob { digest: blob.digest });
                }
                found => {
                    let found = found.map_err(Error::io("look at", &path))?.len();
                    if found != blob.size {
                        return Err(Error::WrongSize { digest: blob.digest, wanted: blob.size, found });
                    }
                }
            }
        }
        let mut index = self.read_index()?;
        index.set(&name.to_string(), manifest);
        self.write_index(&index)
    }

    /// Takes a name away. The blobs stay until `gc`.
    ///
    /// # Errors
    /// [`Error::UnknownImage`], or when the host refuses.
    pub fn untag(&self, name: &Name) -> Result<(), Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let mut index = self.read_index()?;
        if !index.remove(&name.to_string()) {
            return Err(unknown(&index, &name.to_string()));
        }
        self.write_index(&index)
    }

    /// What `text` means: a name, a whole digest, or at least six first digits of one; then perhaps `~N`, the image N
    /// commits before.
    ///
    /// # Errors
    /// [`Error::UnknownImage`], or when the history is not here.
    pub fn resolve(&self, text: &str) -> Result<Descriptor, Error> {
        let index = self.read_index()?;
        let (base, back) = match text.rsplit_once('~') {
            Some((base, back)) => match back.parse::<usize>() {
                Ok(back) => (base, back),
                Err(_) => {
                    let reason = "after ~ comes a number of commits";
                    return Err(Error::BadName { name: text.into(), reason });
                }
            },
            None => (text, 0),
        };
        let named = find(&index, base).cloned();
        let found = named.or_else(|| self.nameless(base)).ok_or_else(|| unknown(&index, base));
        let mut found = found?;
        found.annotations.remove(REF_NAME);
        for step in 0..back {
            found = self.parent(&found)?.ok_or_else(|| {
                Error::invalid(
                    format!("Image `{text}`"),
                    format!("`{base}` has only {step} commits before it here"),
                )
            })?;
        }
        Ok(found)
    }

    /// An image without a name: an older version, or one whose name went to another.
    fn nameless(&self, text: &str) -> Option<Descriptor> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let could_be = digits.len() >= SHORTEST && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let blobs = could_be.then(|| super::gc::entries(self.blobs()).ok())??;
        let mut found = blobs.iter().filter_map(|path| {
            let name = path.file_name()?.to_str().filter(|name| name.starts_with(digits))?;
            let (digest, bytes) = (Digest::from_hex(name)?, self.small_document(&Digest::from_hex(name)?)?);
            Manifest::parse(&bytes, "").ok().filter(Manifest::is_ours)?;
            Some(Descriptor::new(MANIFEST, digest, bytes.len() as u64))
        });
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn write_index(&self, index: &Index) -> Result<(), Error> {
        let path = self.index();
        let beside = self.uploads().join("index.json");
        self.files.replace(&path, &beside, &index.bytes()).map_err(Error::io("write", &path))
    }
}

fn find<'a>(index: &'a Index, text: &str) -> Option<&'a Descriptor> {
    if let Some(entry) = text.parse::<Name>().ok().and_then(|name| index.get(&name.to_string())) {
        return Some(entry);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        return index.manifests.iter().find(|entry| entry.digest == digest);
    }
    let mut starting = index.manifests.iter().filter(|entry| entry.digest.hex().starts_with(text));
    let first = starting.next().filter(|_| text.len() >= SHORTEST)?;
    // Several names of one image are fine, several images are not.
    starting.all(|entry| entry.digest == first.digest).then_some(first)
}

fn unknown(index: &Index, name: &str) -> Error {
    let names: Vec<&str> = index.manifests.iter().filter_map(Index::name_of).collect();
    let full = name.parse::<Name>().map_or(name.into(), |name| name.to_string());
    Error::UnknownImage { name: name.into(), nearest: nearest(&full, &names).map(Into::into) }
}
