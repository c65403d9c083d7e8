//! `rvmm images` and `rvmm history`: which images there are, and how they came to be.

use serde_json::json;

use crate::cli::Common;
use crate::cli::output::{Failure, print, print_json};
use crate::cli::store;
use crate::cli::table::{age, size, table};
use crate::image::{Inspected, Name, Version};

// Options of `images`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm images
  rvmm images -q
  rvmm images -a                          also older versions, and images whose names went to others
  rvmm images web --json | jq -r '.[].digest'

The size is that of all blobs of an image, packed; images share those that are equal.")]
pub struct Images {
    /// Only images of this repository, or with this name
    #[arg(value_name = "REPO[:TAG]")]
    name: Option<String>,
    /// Images without a name, too
    #[arg(short, long)]
    all: bool,
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
    /// Print digests whole
    #[arg(long)]
    no_trunc: bool,
}

// Options of `history`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm history web
  rvmm run web~2
  rvmm checkout web~2 web:good

The newest version stands first. VERSION is what other commands take for it.")]
pub struct History {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print digests only, of versions that are images here
    #[arg(short, long)]
    quiet: bool,
    /// Print everything whole
    #[arg(long)]
    no_trunc: bool,
}

impl Images {
    /// Lists images.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let mut images = store.images().map_err(Failure::refused)?;
        if self.all {
            images.extend(store.nameless_images().map_err(Failure::refused)?);
        }
        if let Some(wanted) = &self.name {
            images.retain(|image| {
                let repository = image.name.rsplit_once(':').map_or("", |(repository, _)| repository);
                image.name == *wanted || repository == wanted
            });
        }
        let id = |image: &crate::image::Image| match self.no_trunc {
            true => image.descriptor.digest.to_string(),
            false => image.descriptor.digest.short(),
        };
        match (self.quiet, common.json) {
            (true, true) => {
                print_json(&images.iter().map(|image| image.descriptor.digest).collect::<Vec<_>>())?
            }
            (true, false) => images.iter().try_for_each(|image| print(id(image)))?,
            (false, true) => {
                let line = |image: &crate::image::Image| {
                    json!({
                        "name": Some(&image.name).filter(|name| !name.is_empty()),
                        "digest": image.descriptor.digest,
                        "created": image.created,
                        "size": image.size,
                        "layers": image.layers,
                        "warm": image.warm,
                    })
                };
                print_json(&images.iter().map(line).collect::<Vec<_>>())?;
            }
            (false, false) => {
                let lines = images.iter().map(|image| {
                    let (repository, tag) = image.name.rsplit_once(':').unwrap_or(("<none>", "<none>"));
                    let warm = if image.warm { "warm" } else { "disk" };
                    [
                        repository.into(),
                        tag.into(),
                        id(image),
                        age(&image.created),
                        warm.into(),
                        size(image.size),
                    ]
                });
                print(table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "STATE", "SIZE"], lines))?;
            }
        }
        Ok(0)
    }
}

impl History {
    /// Shows every version.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let history = store.history(&self.image).map_err(Failure::refused)?;
        let versions = store.versions(&self.image).map_err(Failure::refused)?;
        // Versions before the first that is an image here were made by others.
        let digest = |index: usize| versions.get(index).map(|found| found.digest);
        if self.quiet {
            for found in &versions {
                print(if self.no_trunc { found.digest.to_string() } else { found.digest.short() })?;
            }
            return Ok(0);
        }
        if common.json {
            let line = |(index, (version, size)): (usize, &(Version, u64))| {
                let mut line = json!(version);
                line["size"] = (*size).into();
                line["digest"] = json!(digest(index));
                line
            };
            print_json(&history.iter().enumerate().map(line).collect::<Vec<_>>())?;
            return Ok(0);
        }
        let name = self.image.parse::<Name>().map_or(self.image.clone(), |_| self.image.clone());
        let lines = history.iter().enumerate().map(|(index, (version, bytes))| {
            let place = match digest(index) {
                None => "-".into(),
                Some(_) if index == 0 => name.clone(),
                Some(_) => later(&name, index),
            };
            let id = digest(index).map_or("<missing>".into(), |digest| match self.no_trunc {
                true => digest.to_string(),
                false => digest.short(),
            });
            let message = match version.comment.as_str() {
                "" => version.created_by.as_str(),
                comment => comment,
            };
            let author = if version.author.is_empty() { "-" } else { &version.author };
            [place, id, age(&version.created), author.into(), size(*bytes), shorten(message, self.no_trunc)]
        });
        print(table(["VERSION", "IMAGE ID", "CREATED", "AUTHOR", "SIZE", "MESSAGE"], lines))?;
        Ok(0)
    }
}

/// The version `further` commits before `name`, which may say a number itself.
fn later(name: &str, further: usize) -> String {
    match name.rsplit_once('~').and_then(|(base, back)| Some((base, back.parse::<usize>().ok()?))) {
        Some((base, back)) => format!("{base}~{}", back + further),
        None => format!("{name}~{further}"),
    }
}

/// One line of at most 60 letters.
fn shorten(text: &str, whole: bool) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(57).filter(|_| !whole && line.chars().count() > 60) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.into(),
    }
}

/// All that an image says of itself, for `rvmm inspect`.
pub fn describe(inspected: &Inspected) -> serde_json::Value {
    json!({
        "digest": inspected.descriptor.digest,
        "names": inspected.names,
        "config": inspected.config,
        "manifest": inspected.manifest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_messages() {
        assert_eq!((later("web", 2), later("web:1~3", 2)), ("web~2".into(), "web:1~5".into()));
        assert_eq!(shorten("a\nb", false), "a");
        assert_eq!(shorten(&"ä".repeat(61), false), format!("{}...", "ä".repeat(57)));
        assert_eq!(shorten(&"x".repeat(61), true).len(), 61);
    }
}
