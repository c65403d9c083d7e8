//! `rvmm kernel`: the kernels that images run with.

mod add;
mod package;

use serde_json::{Value, json};

use super::output::{Failure, print, print_json};
use super::table::{age, size, table};
use super::{Common, store};
use crate::image::{Error, Kernel};

/// What is done.
#[derive(clap::Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Keep a kernel for images, with an initial RAM disk that rvmm makes for it
    Add(add::Add),
    /// List the kernels that are kept
    Ls(List),
    /// Forget kernels; `rvmm gc` gives their space back
    Rm(Remove),
    /// Say with which kernel images run that bring none
    Default(Default),
}

// Options of `kernel ls`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm kernel ls
  rvmm kernel ls --json | jq -r '.[] | select(.default) | .version'")]
pub struct List {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

// Options of `kernel rm`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm kernel rm 6.1.0-47-cloud-amd64 && rvmm gc

Machines that run keep their kernel until they end. If it was the default, the one that was added last takes its place.")]
pub struct Remove {
    /// Names, as `rvmm kernel ls` shows them
    #[arg(value_name = "NAME", required = true)]
    kernels: Vec<String>,
}

// Options of `kernel default`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  rvmm kernel default 6.12.90-cloud-amd64
  rvmm kernel default")]
pub struct Default {
    /// The kernel, as `rvmm kernel ls` names it; without one, says which it is
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Command {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        match self {
            Command::Add(args) => args.run(common),
            Command::Ls(args) => list(args, common),
            Command::Rm(args) => remove(args, common),
            Command::Default(args) => default(args, common),
        }
    }
}

fn described(kernel: &Kernel) -> Value {
    json!({
        "name": kernel.name,
        "version": kernel.version,
        "default": kernel.is_default,
        "created": kernel.created,
        "size": kernel.size(),
        "image": kernel.image.digest,
        "kernel": kernel.kernel.digest,
        "initramfs": kernel.initramfs.digest,
        "boot_args": kernel.boot_args,
    })
}

fn list(args: &List, common: &Common) -> Result<u8, Failure> {
    let kernels = store::open(common)?.kernels().map_err(Failure::refused)?;
    match (args.quiet, common.json) {
        (true, true) => print_json(&kernels.iter().map(|kernel| &kernel.name).collect::<Vec<_>>())?,
        (true, false) => kernels.iter().try_for_each(|kernel| print(&kernel.name))?,
        (false, true) => print_json(&kernels.iter().map(described).collect::<Vec<_>>())?,
        (false, false) => {
            let line = |kernel: &Kernel| {
                let default = if kernel.is_default { "yes" } else { "" };
                let version = if kernel.version.is_empty() { "-" } else { &kernel.version };
                let (age, size) = (age(&kernel.created), size(kernel.size()));
                [kernel.name.clone(), version.into(), default.into(), age, size]
            };
            let head = ["NAME", "VERSION", "DEFAULT", "ADDED", "SIZE"];
            print(table(head, kernels.iter().map(line)))?;
        }
    }
    Ok(0)
}

fn remove(args: &Remove, common: &Common) -> Result<u8, Failure> {
    let store = store::open(common)?;
    // A name that is wrong is told before anything is done.
    for name in &args.kernels {
        if let Err(error @ Error::UnknownKernel { .. }) = store.kernel(name) {
            return Err(Failure::refused(error));
        }
    }
    let before = store.default_kernel().unwrap_or_default();
    let mut after = before.clone();
    for name in &args.kernels {
        after = store.remove_kernel(name).map_err(Failure::refused)?;
    }
    let name = |kernel: &Option<Kernel>| kernel.as_ref().map(|kernel| kernel.name.clone());
    match (common.json, name(&after)) {
        (true, default) => print_json(&json!({ "removed": args.kernels, "default": default }))?,
        (false, Some(default)) if name(&before).as_ref() != Some(&default) => {
            print(format!("{default} is the default now"))?;
        }
        _ => {}
    }
    Ok(0)
}

fn default(args: &Default, common: &Common) -> Result<u8, Failure> {
    let store = store::open(common)?;
    let kernel = match &args.name {
        Some(name) => store.set_default_kernel(name).map_err(Failure::refused)?,
        None => wanted(store.default_kernel().map_err(Failure::refused)?)?,
    };
    match common.json {
        true => print_json(&described(&kernel))?,
        false => print(&kernel.name)?,
    }
    Ok(0)
}

/// The default kernel, or what to do when there is none.
pub fn wanted(kernel: Option<Kernel>) -> Result<Kernel, Failure> {
    kernel.ok_or_else(|| {
        Failure::refused(
            "There is no kernel for images: say `rvmm kernel add --from-package`, or `rvmm kernel add FILE`",
        )
    })
}
