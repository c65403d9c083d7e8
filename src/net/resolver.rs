//! Which name servers passt tells the guest (`resolv.conf(5)`, `passt(1)`).
//!
//! passt reads the host's `resolv.conf` and passes on every server in it but those on the host's loopback, which the
//! guest cannot reach while the host itself is closed to it. When there are no others:
//!
//! - systemd-resolved: the servers behind it are passed on, from the file in which it names them;
//! - any other local server (dnsmasq, unbound): passt forwards queries that the guest sends to [`FORWARD`].
//!
//! What does not work: a local server with an IPv6 address only; with a passt from before autumn 2024, answers that
//! are so long that they take TCP; and in the first case, names that only systemd-resolved itself answers, such as
//! those of a VPN with servers of its own.

use std::net::{IpAddr, Ipv4Addr};

/// The host's name servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The name servers behind systemd-resolved.
pub const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// Where the guest sends queries that passt forwards to a local server; an address that nobody has.
const FORWARD: &str = "169.254.1.1";

fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse().ok();
    resolv_conf.lines().filter_map(server).collect()
}

/// Arguments for passt, from the contents of [`RESOLV_CONF`] and [`UPSTREAM`]. `has_dns_host` tells whether this
/// passt knows the option `--dns-host`; it is asked only when that matters.
pub fn arguments(resolv_conf: &str, upstream: &str, has_dns_host: impl FnOnce() -> bool) -> Vec<String> {
    let local = servers(resolv_conf);
    if local.iter().any(|server| !server.is_loopback()) {
        return Vec::new();
    }
    let mut upstream = servers(upstream);
    upstream.retain(|server| !server.is_loopback());
    if !upstream.is_empty() {
        return upstream.iter().flat_map(|server| ["--dns".into(), server.to_string()]).collect();
    }
    let is_v4 = |server: &&IpAddr| matches!(server, IpAddr::V4(_));
    let local = match local.iter().find(is_v4) {
        Some(local) => local.to_string(),
        // Without a server, the C library asks this one.
        None if local.is_empty() => Ipv4Addr::LOCALHOST.to_string(),
        None => return Vec::new(),
    };
    // An old passt forwards to the first server that it hears of, and does not tell the guest of it.
    let host = if has_dns_host() { "--dns-host" } else { "--dns" };
    [host, &local, "--dns", FORWARD, "--dns-forward", FORWARD].map(String::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resolv_conf: &str, upstream: &str, new: bool) -> String {
        arguments(resolv_conf, upstream, || new).join(" ")
    }

    #[test]
    fn leaves_reachable_servers_to_passt() {
        assert_eq!(of("nameserver 10.0.0.1\n", "nameserver 9.9.9.9", true), "");
        assert_eq!(of("# x\nsearch a b\nnameserver 127.0.0.1\nnameserver\t2001:db8::1\n", "", false), "");
    }

    #[test]
    fn asks_behind_systemd_resolved() {
        let upstream = "nameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver 2001:db8::1";
        assert_eq!(of("nameserver 127.0.0.53", upstream, true), "--dns 10.0.0.1 --dns 2001:db8::1");
    }

    #[test]
    fn forwards_to_a_local_server() {
        let resolv = "nameserver ::1\nnameserver 127.0.0.2";
        assert_eq!(of(resolv, "", true), "--dns-host 127.0.0.2 --dns 169.254.1.1 --dns-forward 169.254.1.1");
        assert_eq!(of(resolv, "", false), "--dns 127.0.0.2 --dns 169.254.1.1 --dns-forward 169.254.1.1");
        assert_eq!(of("", "", false), "--dns 127.0.0.1 --dns 169.254.1.1 --dns-forward 169.254.1.1");
        assert_eq!(of("nameserver ::1", "", true), "");
    }
}
