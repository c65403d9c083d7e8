//! `rvmm tag` and `rvmm rmi`: names of images come, move and go.

use serde_json::json;

use crate::cli::Common;
use crate::cli::output::{Failure, complain, print, print_json};
use crate::cli::table::size;
use crate::cli::{exit, store};
use crate::image::{Error, Index, Name, Store};
use crate::vmm::chain;

// Options of `tag`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm tag web web:v1
  rvmm tag 3f2a9c1d04be registry.example/team/web:v1

A name that another image had goes to this one; the other stays as long as something leads to it.")]
pub struct Tag {
    /// The image: a name, a digest or its first digits, with ~N the version N commits before
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name
    #[arg(value_name = "REPO:TAG")]
    name: Name,
}

// Options of `rmi`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm rmi web:v1
  rvmm rmi $(rvmm images -q old)

A name is taken away; with its last name the image goes, and what no other image shares. An image that a machine uses \
keeps its last name, unless --force says otherwise: its blobs then stay until the machine is gone and `rvmm gc` comes.")]
pub struct Rmi {
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Take away all names, and those of images in use, too
    #[arg(short, long)]
    force: bool,
}

impl Tag {
    /// Gives an image a name.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let image = store.resolve(&self.image).map_err(Failure::refused)?;
        store.tag(&self.name, &image).map_err(Failure::refused)?;
        if common.json {
            print_json(&json!({ "name": self.name.to_string(), "digest": image.digest }))?;
        }
        Ok(0)
    }
}

impl Rmi {
    /// Takes names away, then removes what nothing leads to.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let (mut untagged, mut failed) = (Vec::new(), false);
        for image in &self.images {
            match self.untag(&store, image) {
                Ok(names) => untagged.extend(names),
                Err(error) => {
                    complain(common.json, exit::REFUSED, &chain(&error));
                    failed = true;
                }
            }
        }
        let names: Vec<_> = untagged.iter().map(Name::to_string).collect();
        if !common.json {
            names.iter().try_for_each(|name| print(format!("Untagged: {name}")))?;
        }
        let collected = store.gc().map_err(Failure::refused)?;
        if common.json {
            print_json(&json!({ "untagged": names, "blobs": collected.blobs, "bytes": collected.bytes }))?;
        } else if collected.blobs > 0 {
            print(format!("Deleted: {} blobs, {}", collected.blobs, size(collected.bytes)))?;
        }
        Ok(if failed { exit::REFUSED } else { 0 })
    }

    fn untag(&self, store: &Store, image: &str) -> Result<Vec<Name>, Error> {
        let index = store.read_index()?;
        let found = store.resolve(image)?;
        let refuse = |reason| Error::Refused { doing: "remove", what: format!("`{image}`"), reason };
        let same = || index.manifests.iter().filter(|entry| entry.digest == found.digest);
        let all: Vec<Name> = same().filter_map(|entry| Index::name_of(entry)?.parse().ok()).collect();
        let name = image.parse::<Name>().ok().filter(|name| all.contains(name));
        let names = match name {
            Some(name) => vec![name],
            None if all.len() > 1 && !self.force => {
                let list: Vec<_> = all.iter().map(Name::to_string).collect();
                let reason = format!("it has several names ({}): say one, or --force", list.join(", "));
                return Err(refuse(reason));
            }
            None if all.is_empty() => {
                let reason = "it has no name: an image that only others came from goes with them".into();
                return Err(refuse(reason));
            }
            None => all.clone(),
        };
        if names.len() == all.len()
            && !self.force
            && let Some(user) = store.user_of(&found.digest)?
        {
            let reason = format!("{user} uses it: end that first, or say --force to take the name away");
            return Err(refuse(reason));
        }
        names.iter().try_for_each(|name| store.untag(name))?;
        Ok(names)
    }
}
