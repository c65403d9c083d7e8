//! `rvmm inspect`: all about machines and images, as JSON.

use serde_json::{Value, json};

use super::image::ended::Ended;
use super::image::list::describe;
use super::image::stands_on::StandsOn;
use super::image::start::damaged;
use super::machines::{self, Selection};
use super::output::{Failure, complain, print_json};
use super::{Common, exit, store};
use crate::image::{Error, Instance, Record};
use crate::vmm::chain;

// Options of `inspect`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm inspect web
  rvmm inspect alpine:3 | jq '.[].config.history'
  rvmm inspect web db | jq -r '.[].config.\"boot-source\".kernel_image_path'

The output is an array, with one object for each machine or image that was found; machines come before images of \
the same name. Of a machine that does not run, it is what will run when it is started.")]
pub struct Args {
    /// Machines, as `rvmm ps` names them, and images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Prints what machines and images tell about themselves.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let results = machines::each(common, Selection::Names(&args.names), |machine| {
        let mut said = machines::ask(machine, "GET", "/vm", None)?;
        if let Some(found) = StandsOn::read(machine.directory()) {
            said["image"] = json!(found.image.digest);
        }
        Ok(said)
    })?;
    let (mut found, mut status) = (Vec::new(), 0);
    for (name, result) in results {
        let other = match &result {
            Err(machines::Error::Stopped { .. }) => stopped(&name, common)?,
            Err(error) if error.is_absent() => image(&name, error, common)?,
            _ => None,
        };
        match other.unwrap_or_else(|| result.map_err(|error| machines::reason(&name, &error))) {
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

/// What is known of a machine that does not run, or why it cannot be read.
fn stopped(name: &str, common: &Common) -> Result<Option<Result<Value, String>>, Failure> {
    let Some(store) = store::existing(common)? else { return Ok(None) };
    let told = |found: Instance| {
        let ended = Ended::read(found.path());
        let Record { image, created, machine, .. } = found.record;
        json!({ "name": name, "state": "Stopped", "image": image.digest, "created": created, "ended": ended, "config": machine })
    };
    let found = store.instance(name).map(|found| found.map(told)).map_err(|error| damaged(name, &error));
    Ok(found.transpose())
}

/// What an image says, or what is wrong with it; `None` if what is said of machines says more.
fn image(
    name: &str,
    no_machine: &machines::Error,
    common: &Common,
) -> Result<Option<Result<Value, String>>, Failure> {
    let Some(store) = store::existing(common)? else { return Ok(None) };
    Ok(match store.inspect(name) {
        Ok(inspected) => Some(Ok(describe(&inspected))),
        Err(Error::UnknownImage { nearest: Some(nearest), .. }) => {
            Some(Err(format!("There is no machine or image `{name}`, did you mean `{nearest}`?")))
        }
        Err(Error::UnknownImage { .. }) if matches!(no_machine, machines::Error::Unknown { .. }) => None,
        Err(Error::UnknownImage { .. }) => Some(Err(format!(
            "There is no machine or image `{name}`: `rvmm ps -a` and `rvmm images` list those that there are"
        ))),
        Err(error) => Some(Err(chain(&error))),
    })
}
