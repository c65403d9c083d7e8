//! `rvmm pause` and `rvmm resume`.

use serde_json::json;

use super::Common;
use super::machines::{self, Selection};
use super::output::Failure;

// Options of `pause`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm pause web db
  rvmm resume web db

A paused machine takes no CPU time, keeps its memory and its open files, and sees a jump of its clock afterwards.")]
pub struct Pause {
    /// Machines, as `rvmm ps` names them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

// Options of `resume`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm resume web

A machine that paused itself because the host's disk was full tries again what it could not do.")]
pub struct Resume {
    /// Machines, as `rvmm ps` names them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Pause {
    /// Pauses machines.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        change(&self.names, "Paused", common)
    }
}

impl Resume {
    /// Lets machines go on.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        change(&self.names, "Resumed", common)
    }
}

fn change(names: &[String], state: &str, common: &Common) -> Result<u8, Failure> {
    let results = machines::each(common, Selection::Names(names), |machine| {
        machines::ask(machine, "PATCH", "/vm", Some(json!({ "state": state }))).map(drop)
    })?;
    machines::report(common, &results)
}
