//! The guest of a machine, as its agent shows it.

use std::path::PathBuf;

use super::machines;
use super::output::Failure;
use crate::agent::{self, Client};
use crate::api::runtime::Machine;
use crate::devices::virtio::vsock;

/// The socket that leads to the guest of a machine.
pub fn socket(machine: &Machine) -> Result<PathBuf, Failure> {
    let config = machines::config(machine)?;
    match config.devices.vsock.into_iter().next() {
        Some(vsock) => Ok(vsock.uds_path.unwrap_or_else(|| machine.directory().join(vsock::SOCKET))),
        None => Err(Failure::usage(format!(
            "{} has no channel to its guest: it was started with --vsock none",
            machine.name
        ))),
    }
}

/// Connects to the agent in the guest of a machine.
pub fn connect(machine: &Machine) -> Result<Client, Failure> {
    Client::connect(&socket(machine)?, agent::PATIENCE).map_err(Failure::usage)
}
