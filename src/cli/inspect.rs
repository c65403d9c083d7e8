//! `rvmm inspect`: all about machines and images, as JSON.

use serde_json::Value;

use super::image::list::describe;
use super::machines::{self, Selection};
use super::output::{Failure, complain, print_json};
use super::{Common, exit, store};
use crate::vmm::chain;

// Options of `inspect`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm inspect web
  rvmm inspect alpine:3 | jq '.[].config.history'
  rvmm inspect web db | jq -r '.[].config.\"boot-source\".kernel_image_path'

The output is an array, with one object for each machine or image that was found; machines come before images of
the same name.")]
pub struct Args {
    /// Machines, as `rvmm ps` names them, and images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Prints what machines and images tell about themselves.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let results = machines::each(common, Selection::Names(&args.names), |machine| {
        machines::ask(machine, "GET", "/vm", None)
    })?;
    let (mut found, mut status) = (Vec::new(), 0);
    for (name, result) in results {
        let image = match &result {
            Err(error) if error.is_absent() => image(&name, common)?,
            _ => None,
        };
        match image.unwrap_or_else(|| result.map_err(|error| machines::reason(&name, &error))) {
            Ok(said) => found.push(said),
            Err(reason) => {
                complain(common.json, exit::REFUSED, &reason);
                status = exit::REFUSED;
            }
        }
    }
    print_json(&found)?;
    Ok(status)
}

/// What an image says, or what is wrong with it; `None` if there is none and none that looks like it.
fn image(name: &str, common: &Common) -> Result<Option<Result<Value, String>>, Failure> {
    let Some(store) = store::existing(common)? else { return Ok(None) };
    Ok(match store.inspect(name) {
        Ok(inspected) => Some(Ok(describe(&inspected))),
        Err(crate::image::Error::UnknownImage { nearest: None, .. }) => None,
        Err(crate::image::Error::UnknownImage { nearest: Some(nearest), .. }) => {
            Some(Err(format!("There is no machine or image `{name}`, did you mean `{nearest}`?")))
        }
        Err(error) => Some(Err(chain(&error))),
    })
}
