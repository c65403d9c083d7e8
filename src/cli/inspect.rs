//! `rvmm inspect`: all about machines, as JSON.

use super::machines::{self, Selection};
use super::output::{Failure, print_json};
use super::{Common, exit};

/// Options of `inspect`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm inspect web
  rvmm inspect web db | jq -r '.[].config.\"boot-source\".kernel_image_path'

The output is an array, with one object for each machine that was found.")]
pub struct Args {
    /// Machines, as `rvmm ps` names them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Prints what machines tell about themselves.
pub fn run(args: &Args, common: &Common) -> Result<u8, Failure> {
    let results = machines::each(common, Selection::Names(&args.names), |machine| {
        machines::ask(machine, "GET", "/vm", None)
    })?;
    let found: Vec<_> = results.iter().filter_map(|(_, result)| result.as_ref().ok()).collect();
    print_json(&found)?;
    let mut status = 0;
    for (name, result) in &results {
        if let Err(error) = result {
            machines::complain_about(common, name, error);
            status = exit::REFUSED;
        }
    }
    Ok(status)
}
