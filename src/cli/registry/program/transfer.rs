//! `rvmm pull` and `rvmm push`: images from and to registries (OCI distribution specification 1.1).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::json;

use super::super::{Pull, Push};
use crate::cli::output::{Failure, print, print_json};
use crate::cli::progress::Bar;
use crate::cli::{Common, store};
use crate::image::import::{DEFAULT_SIZE, Options};
use crate::image::registry::{Client, Moved, Pulled};
use crate::image::{Commit, Descriptor, Digest, Lease, Name, STATE, Step, Store};
use crate::sys::lock;

impl Pull {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let (name, tag) = source(&self.image)?;
        let (registry, repository) = name.remote().map_err(Failure::usage)?;
        let target = match (&self.name, tag.parse::<Digest>()) {
            (Some(name), _) => name,
            (None, Err(_)) => &name,
            (None, Ok(_)) => {
                return Err(Failure::usage("An image that has no tag needs a name here: --as REPO:TAG"));
            }
        };
        let store = store::open(common)?;
        let client = Client::new(registry, repository, &self.connection.access(registry)?);
        let client = client.map_err(Failure::refused)?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        let (image, moved, known) = self.fetch(&store, &mut lease, &client, &tag, common)?;
        store.tag(target, &image).map_err(Failure::refused)?;
        store::unpack(&store, &image);
        let digest = image.digest;
        match common.json {
            true => print_json(&json!({
                "name": target.to_string(),
                "digest": digest,
                "blobs": moved.blobs,
                "bytes": moved.bytes,
                "known_bytes": known,
            }))?,
            false => print(format!("{target} is {}: {}", digest.short(), told(moved, known, "fetched")))?,
        }
        Ok(0)
    }

    fn fetch(
        &self,
        store: &Store,
        lease: &mut Lease,
        client: &Client,
        tag: &str,
        common: &Common,
    ) -> Result<(Descriptor, Moved, u64), Failure> {
        let found = store.pull_manifest(lease, client, tag).map_err(Failure::refused)?;
        let manifest = store.manifest(&found).map_err(Failure::refused)?;
        let total = manifest.blobs().fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        let size = self.size.unwrap_or(DEFAULT_SIZE);
        if !manifest.is_ours()
            && let Some(image) = store.imported(&found.digest, size).map_err(Failure::refused)?
        {
            return Ok((image, Moved::default(), total));
        }
        let line = Line::new("pulling", total, common);
        let pulled = store.pull(lease, client, &found, &|digest, at, _| line.tell(digest, at));
        drop(line);
        let Pulled { image, moved, known } = pulled.map_err(Failure::refused)?;
        if manifest.is_ours() {
            return Ok((image, moved, known));
        }
        let message = format!("Pulled from {}", self.image);
        let created_by = format!("rvmm pull {}", self.image);
        let about = Commit { message: &message, created_by: &created_by, ..Commit::new(SystemTime::now()) };
        let image = store.import_pulled(lease, &image, &Options { size, about }).map_err(Failure::refused)?;
        Ok((image, moved, known))
    }
}

impl Push {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let named = || self.image.parse::<Name>().map_err(Failure::usage);
        let target = self.target.clone().map_or_else(named, Ok)?;
        let (registry, repository) = target.remote().map_err(Failure::usage)?;
        let store = store::open(common)?;
        let image = store.resolve(&self.image).map_err(Failure::refused)?;
        let manifest = store.manifest(&image).map_err(Failure::refused)?;
        if manifest.of_type(STATE).next().is_some() {
            log::warn!(
                "{} is warm: the memory of its machine goes to {registry}, with all secrets in it",
                self.image
            );
        }
        let client = Client::new(registry, repository, &self.connection.access(registry)?);
        let client = client.map_err(Failure::refused)?;
        let total = manifest.blobs().fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        let line = Line::new("pushing", total, common);
        let pushed = store.push(&image, &client, &target.tag, &|digest, at, _| line.tell(digest, at));
        drop(line);
        let moved = pushed.map_err(Failure::refused)?;
        let known = total.saturating_sub(moved.bytes);
        match common.json {
            true => print_json(&json!({
                "name": target.to_string(),
                "digest": image.digest,
                "blobs": moved.blobs,
                "bytes": moved.bytes,
                "known_bytes": known,
            }))?,
            false => {
                print(format!("{target} is {}: {}", image.digest.short(), told(moved, known, "sent")))?;
            }
        }
        Ok(0)
    }
}

/// How far blobs are that move at once, in one line.
struct Line {
    bar: Option<Bar>,
    doing: &'static str,
    total: u64,
    at: Mutex<HashMap<Digest, u64>>,
}

impl Line {
    fn new(doing: &'static str, total: u64, common: &Common) -> Self {
        Line { bar: Bar::new(common), doing, total, at: Mutex::default() }
    }

    fn tell(&self, blob: &Digest, at: u64) {
        let Some(bar) = &self.bar else { return };
        let mut all = lock(&self.at);
        all.insert(*blob, at);
        bar.show(&Step { doing: self.doing, done: all.values().sum(), total: Some(self.total) });
    }
}

/// What is to be pulled: the name, and the tag or digest to ask for.
fn source(text: &str) -> Result<(Name, String), Failure> {
    match text.split_once('@') {
        Some((name, digest)) => {
            let digest: Digest = digest.parse().map_err(Failure::usage)?;
            let name: Name = name.parse().map_err(Failure::usage)?;
            Ok((name, digest.to_string()))
        }
        None => {
            let name: Name = text.parse::<Name>().map_err(Failure::usage)?;
            let tag = name.tag.clone();
            Ok((name, tag))
        }
    }
}

fn told(moved: Moved, known: u64, how: &str) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    match moved.blobs {
        0 => format!("nothing had to be {how}, {} were there", mib(known)),
        count => format!("{} in {count} blobs {how}, {} were there", mib(moved.bytes), mib(known)),
    }
}
