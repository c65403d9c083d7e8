//! `rvmm save` and `rvmm load`: images in one file.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use serde_json::json;

use super::archive;
use crate::cli::Common;
use crate::cli::output::{Failure, print, print_json};
use crate::cli::store;
use crate::image::{Kernel, Name, Store, kernel};

// Options of `save`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm save web:v2 -o web.tar
  rvmm save web db | ssh other rvmm load
  rvmm save web --with-kernel | zstd >web.tar.zst      for a machine without a network

The file is an OCI layout in an archive, the same bytes for the same images. Older versions are not in it: name them as well. \
Kernels are images, too: `rvmm save rvmm/kernel:NAME`.")]
pub struct Save {
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write here [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// With the default kernel, so that images that bring none run elsewhere as they do here
    #[arg(long)]
    with_kernel: bool,
}

// Options of `load`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm load -i web.tar.zst
  ssh other rvmm save web | rvmm load

The archive may be compressed with gzip, bzip2, xz or zstd. A kernel in it is the default one where there is none yet. For images of \
containers, see `rvmm import`.")]
pub struct Load {
    /// Read this [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
}

fn default(store: &Store) -> Result<Kernel, Failure> {
    let none = "The store has no default kernel to go with it: `rvmm kernel add --from-package` adds one";
    store.default_kernel().map_err(Failure::refused)?.ok_or_else(|| Failure::refused(none))
}

impl Save {
    /// Writes images to an archive.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let mut images = Vec::new();
        for text in &self.images {
            let found = store.inspect(text).map_err(Failure::refused)?;
            let first = found.names.first().and_then(|name| name.parse::<Name>().ok());
            let name =
                text.parse::<Name>().ok().filter(|name| found.names.contains(&name.to_string())).or(first);
            let name = name.ok_or_else(|| {
                Failure::refused(format!(
                    "`{text}` has no name to be saved with: give it one with `rvmm tag`"
                ))
            })?;
            // Elsewhere, another kernel may be the default.
            let name = match kernel::is_default(&name) {
                true => default(&store)?.full_name().map_err(Failure::refused)?,
                false => name,
            };
            images.push((name, found.descriptor));
        }
        if self.with_kernel {
            let kernel = default(&store)?;
            images.push((kernel.full_name().map_err(Failure::refused)?, kernel.image));
        }
        archive(self.output.as_ref(), |mut to| store.save(&images, &mut to).map_err(Failure::refused))?;
        Ok(0)
    }
}

impl Load {
    /// Reads an archive.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let mut from: Box<dyn Read> = match self.input.as_ref().filter(|path| path.as_os_str() != "-") {
            Some(path) => Box::new(
                File::open(path)
                    .map_err(|error| Failure::usage(format!("Cannot open {}: {error}", path.display())))?,
            ),
            None if io::stdin().is_terminal() => {
                return Err(Failure::usage("No archive: say -i FILE, or redirect the input"));
            }
            None => Box::new(io::stdin().lock()),
        };
        let store = store::open(common)?;
        let mut lease = store.lease().map_err(Failure::refused)?;
        let images = store.load(&mut lease, &mut from, store::LIMIT).map_err(Failure::refused)?;
        images.iter().for_each(|(_, image)| store::unpack(&store, image));
        if common.json {
            let line = |(name, image): &(Name, crate::image::Descriptor)| json!({ "name": name.to_string(), "digest": image.digest });
            print_json(&images.iter().map(line).collect::<Vec<_>>())?;
        } else {
            images.iter().try_for_each(|(name, _)| print(format!("Loaded image: {name}")))?;
        }
        Ok(0)
    }
}
