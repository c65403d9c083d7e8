//! Who a machine is on its networks: the addresses of its interfaces.
//!
//! ```text
//!   run       the address that the user gives, else a random one
//!   restore   the address that was saved, unless the user gives one or a machine on this host has it: then a random one
//!   clone     a random one, unless the user gives one
//! ```

use log::{info, warn};

use super::output::Failure;
use crate::config::VmConfig;
use crate::net::{Claim, Mac};
use crate::vmm::snapshot::Restore;

/// Decides the address of every interface and takes it; it is this machine's as long as what is returned lives. With
/// `new_identity`, a saved machine does not go on as itself but as another one.
pub fn decide(
    config: &mut VmConfig,
    restore: Option<&Restore>,
    new_identity: bool,
) -> Result<Vec<Claim>, Failure> {
    let saved = restore.map(|restore| &restore.config().devices.net);
    let mut claims = Vec::new();
    for (index, interface) in config.devices.net.iter_mut().enumerate() {
        let name = interface.name(index);
        let before = saved.and_then(|saved| saved.get(index)?.guest_mac);
        let told = interface.guest_mac.filter(|&mac| Some(mac) != before);
        let kept = if new_identity { None } else { before };
        let claim = match (told, kept.and_then(|mac| Some((mac, mac.claim()?)))) {
            (Some(mac), _) => {
                let claim = mac.claim();
                if claim.is_none() {
                    warn!("another machine on this host has the address {mac} of {name}, too");
                }
                claim
            }
            (None, Some((_, claim))) => Some(claim),
            (None, None) => {
                let mac = Mac::random().map_err(Failure::usage)?;
                if let Some(kept) = kept {
                    info!("a machine on this host has the address {kept}: {name} gets {mac}");
                }
                interface.guest_mac = Some(mac);
                mac.claim()
            }
        };
        claims.extend(claim);
    }
    Ok(claims)
}
