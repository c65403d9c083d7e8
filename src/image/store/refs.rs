//! Names of images in the store: `index.json` (OCI image specification 1.1, Image Index; annotation org.opencontainers.image.ref.name).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Hold, MAX_DOCUMENT, Store};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, INDEX, MANIFEST, Manifest};
use crate::image::name::Name;
use crate::image::{Error, kernel};
use crate::options::{nearest, similar};

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

    /// Gives an image a name, if all its blobs are there. Returns the image that had the name and goes on without, if it is
    /// another one.
    ///
    /// # Errors
    /// As [`Store::tag_all`].
    pub fn tag(&self, name: &Name, manifest: &Descriptor) -> Result<Option<Descriptor>, Error> {
        self.change_index(|index| {
            let before = index.get(&name.to_string()).cloned();
            self.set(index, name, manifest)?;
            Ok(before.filter(|before| before.digest != manifest.digest))
        })
    }

    /// Gives several images their names, or none.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], when a name is a kernel's and the image none or another one, when a manifest is damaged, or when
    /// the host refuses.
    pub fn tag_all(&self, images: &[(Name, Descriptor)]) -> Result<(), Error> {
        self.change_index(|index| {
            images.iter().try_for_each(|(name, manifest)| self.set(index, name, manifest))
        })
    }

    fn set(&self, index: &mut Index, name: &Name, manifest: &Descriptor) -> Result<(), Error> {
        let whole = self.manifest(manifest)?;
        kernel::check_name(index, name, manifest, &whole)?;
        self.has_blobs(&whole)?;
        index.set(&name.to_string(), manifest);
        kernel::came(index, name, manifest);
        Ok(())
    }

    /// Changes names, all of them or none.
    pub(in crate::image) fn change_index<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _lock = self.lock(Hold::Exclusive)?;
        let mut index = self.read_index()?;
        let changed = change(&mut index)?;
        let (path, beside) = (self.index(), self.uploads().join("index.json"));
        self.files.replace(&path, &beside, &index.bytes()).map_err(Error::io("write", &path))?;
        Ok(changed)
    }

    /// Whether all blobs of a manifest are there, in their size.
    fn has_blobs(&self, manifest: &Manifest) -> Result<(), Error> {
        for blob in manifest.blobs() {
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
        Ok(())
    }

    /// Takes a name away. The blobs stay until `gc`.
    ///
    /// # Errors
    /// [`Error::UnknownImage`], or when the host refuses.
    pub fn untag(&self, name: &Name) -> Result<(), Error> {
        let name = name.to_string();
        self.change_index(|index| if index.remove(&name) { Ok(()) } else { Err(unknown(index, &name)) })
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
        let mut found = match find(&index, base)? {
            Some(found) => found.clone(),
            None => self.nameless(base)?.ok_or_else(|| unknown(&index, base))?,
        };
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
    fn nameless(&self, text: &str) -> Result<Option<Descriptor>, Error> {
        let Some(digits) = digits(text) else { return Ok(None) };
        only(self.manifests(digits)?, text)
    }

    /// All manifests of images of ours whose digests begin so, with and without a name. Those that are damaged are left out.
    pub(in crate::image) fn manifests(&self, digits: &str) -> Result<Vec<Descriptor>, Error> {
        let mut found = Vec::new();
        for path in super::gc::entries(self.blobs())? {
            let name =
                path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with(digits));
            let Some(digest) = name.and_then(Digest::from_hex) else { continue };
            // Most blobs are none, and large.
            if !begins_document(&path) {
                continue;
            }
            let size = std::fs::metadata(&path).map_or(0, |found| found.len());
            let image = Descriptor::new(MANIFEST, digest, size);
            if self.manifest(&image).is_ok_and(|manifest| manifest.is_ours()) {
                found.push(image);
            }
        }
        Ok(found)
    }
}

fn begins_document(path: &Path) -> bool {
    let mut first = [0];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut first).is_ok()) && first == *b"{"
}

fn find<'a>(index: &'a Index, text: &str) -> Result<Option<&'a Descriptor>, Error> {
    if let Some(entry) = text.parse::<Name>().ok().and_then(|name| index.get(&name.to_string())) {
        return Ok(Some(entry));
    }
    let Some(digits) = digits(text) else { return Ok(None) };
    let mut found: Vec<_> =
        index.manifests.iter().filter(|entry| entry.digest.hex().starts_with(digits)).collect();
    // Several names of one image are fine, several images are not.
    found.sort_by_key(|entry| entry.digest);
    found.dedup_by_key(|entry| entry.digest);
    only(found, text)
}

/// The digits of a digest, or its first ones.
fn digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    (digits.len() >= SHORTEST && digits.bytes().all(|c| c.is_ascii_hexdigit())).then_some(digits)
}

fn only<T>(mut found: Vec<T>, text: &str) -> Result<Option<T>, Error> {
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let reason = "several images have digests that begin so: say more digits";
            Err(Error::BadName { name: text.into(), reason })
        }
    }
}

fn unknown(index: &Index, name: &str) -> Error {
    let repository = |name: &str| name.parse::<Name>().map_or(name.into(), |name| name.repository);
    // Who says no tag, or one that is not there, means a repository, whatever tags are alike.
    let whole = name.parse::<Name>().map_or(name.into(), |name| name.to_string());
    let part = repository(name);
    let is_like = |other: &&str| similar(&part, &[&repository(other)]).is_some();
    let alike: Vec<&str> = index.manifests.iter().filter_map(Index::name_of).filter(is_like).collect();
    Error::UnknownImage { name: name.into(), nearest: nearest(&whole, &alike).map(Into::into) }
}
