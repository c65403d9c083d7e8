//! A small world in namespaces of its own, made without privileges: the host's network, of which no packet leaves it.
//!
//! ```text
//!   guest ── tap0 ────────┐ 203.0.113.1/24
//!                         host ── lan0, 192.0.2.2/24: the way out, which passt shows the guest; nobody is there
//!   guest ── passt ───────┘   └── lo, 198.51.100.1: the server, which is also the name server
//! ```

use std::process::Command;

use super::host::Offer;

/// The host's address on the tap, and one for the guest.
pub const HOST_ON_TAP: &str = "203.0.113.1";
pub const GUEST_ON_TAP: &str = "203.0.113.2";
/// The address that passt gives the guest, for it is the host's own.
pub const GUEST_ON_PASST: &str = "192.0.2.2";
/// The gateway of passt's network.
pub const GATEWAY: &str = "192.0.2.1";
/// What answers names and requests.
pub const SERVER: &str = "198.51.100.1";

const SET_UP: &str = "set -e
ip link set lo up
ip addr add 198.51.100.1/32 dev lo
ip tuntap add dev tap0 mode tap
ip addr add 203.0.113.1/24 dev tap0
ip link set tap0 up
ip tuntap add dev lan0 mode tap
ip addr add 192.0.2.2/24 dev lan0
ip link set lan0 up
ip route add default via 192.0.2.1
names=$(mktemp)
echo nameserver 198.51.100.1 >$names
mount --bind $names /etc/resolv.conf
rm $names
";

/// A shell script in a world of its own; arguments that are added are those of the script.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("unshare");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(["-rnm", "sh", "-c"]);
    command.arg(format!("{SET_UP}{script}"));
    command
}

/// Whether the host lets us make one.
pub fn offered() -> Offer {
    match shell("true").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "no network namespace with a tap: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("no network namespace with a tap: {error}")),
    }
}
