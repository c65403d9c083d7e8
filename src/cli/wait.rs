//! `rvmm wait`: how machines end, for scripts that start them in the background.

use std::time::Duration;

use serde_json::{Value, json};

use super::end::{End, gone};
use super::image::ended::Ended;
use super::machines::{self, Error, Selection};
use super::output::{Failure, complain, print, print_json};
use super::{Common, exit, store};
use crate::api::runtime::Machine;
use crate::vmm::Outcome;

/// A machine may run as long as it likes.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

// Options of `wait`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm run -d --name job alpine -- sh -c 'make test'
  test $(rvmm wait job) = 0 && rvmm cp job:/out .
  rvmm wait --json job | jq -r '.[].cause'

It prints the exit status of each machine, as `rvmm run` would have had it in the foreground, when all have ended. Of a named machine of \
an image it is known until the machine is started again or removed, of any other only while the machine runs.")]
pub struct Args {
    /// Machines, as `rvmm ps -a` names them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Waits until machines have ended.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let results = machines::each(common, Selection::Names(&args.names), watch)?;
    let store = store::existing(common)?;
    let kept = |name: &str| {
        let instance = store.as_ref()?.instance(name).ok()??;
        Ended::read(instance.path())
    };
    let (mut told, mut status) = (Vec::new(), 0);
    for (name, result) in results {
        let ended = match result {
            Ok(Some(ended)) => Ok(ended),
            // It was about to end, or ended before.
            Ok(None) | Err(Error::Stopped { .. }) => kept(&name).ok_or_else(|| {
                format!("Nobody knows how `{name}` ended: it was killed, was gone before it was asked, or never ran")
            }),
            Err(error) => Err(machines::reason(&name, &error)),
        };
        match ended {
            Ok(ended) => told.push((name, ended)),
            Err(reason) => {
                complain(common.json, exit::REFUSED, &reason);
                status = exit::REFUSED;
            }
        }
    }
    match common.json {
        true => print_json(&told.iter().map(line).collect::<Vec<_>>())?,
        false => told.iter().try_for_each(|(_, ended)| print(ended.status))?,
    }
    Ok(status)
}

fn line((name, ended): &(String, Ended)) -> Value {
    let mut line = json!(ended);
    line["name"] = name.as_str().into();
    line
}

/// How a machine that runs ends, when it is gone; `None` if it does not tell.
fn watch(machine: &Machine) -> Result<Option<Ended>, Error> {
    let told = End::watch(machine).told(FOR_EVER);
    gone(machine, FOR_EVER)?;
    Ok(told.ok().and_then(|told| serde_json::from_value::<Outcome>(told).ok()).map(Ended::from))
}
