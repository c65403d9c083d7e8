//! `rvmm checkout`: an older version runs, or gets a name.

use super::run::{Container, launch};
use crate::cli::output::{Failure, print, print_json};
use crate::cli::{Common, run, store};
use crate::image::Name;

// Options of `checkout`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm checkout web~2
  rvmm checkout web~2 web:good
  rvmm checkout 3f2a9c1d04be web

Without a name for it the version runs, and the machine is gone when it ends; with one, the name leads to it from now on, \
as after `rvmm tag`. `rvmm history` shows the versions.")]
pub struct Checkout {
    /// The version
    #[arg(value_name = "IMAGE~N")]
    version: String,
    /// Its new name
    #[arg(value_name = "REPO:TAG")]
    new_name: Option<Name>,
    #[command(flatten)]
    machine: run::Args,
}

impl Checkout {
    /// Runs the version, or names it.
    pub fn run(self, common: &Common) -> Result<u8, Failure> {
        let store = store::open(common)?;
        let image = store.resolve(&self.version).map_err(Failure::refused)?;
        let Some(name) = self.new_name else {
            return launch(&store, image, Container::default(), self.machine, common);
        };
        store.tag(&name, &image).map_err(Failure::refused)?;
        match common.json {
            true => print_json(&serde_json::json!({ "name": name.to_string(), "digest": image.digest }))?,
            false => print(format!("{name} is {}", image.digest.short()))?,
        }
        Ok(0)
    }
}
