//! Which name servers passt tells the guest (`resolv.conf(5)`, `passt(1)`).
//!
//! passt reads the host's `resolv.conf` and passes on every server in it but those on the host's loopback, which the
//! guest cannot reach while the host itself is closed to it. When there are no others:
//!
//! - systemd-resolved: the servers behind it are passed on, from the file in which it names them;
//! - any other local server (dnsmasq, unbound): the guest asks its gateway, and passt forwards that to the server.
//!
//! What does not work: in the first case, names that only systemd-resolved itself answers, such as those of a VPN
//! with servers of its own; in the second, a local server or a way out with IPv6 only and, with a passt from before
//! autumn 2024, answers that are so long that they take TCP. The passt of Debian 12 forwards to 127.0.0.1 only, and
//! tells the guest of that address too, where the guest asks in vain before it asks the gateway.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

/// What the host says about its network.
pub struct Host {
    /// `/etc/resolv.conf`: its name servers.
    pub resolv_conf: String,
    /// `/run/systemd/resolve/resolv.conf`: the name servers behind systemd-resolved.
    pub upstream: String,
    /// `/proc/net/route`: its routes over IPv4.
    pub routes: String,
}

impl Host {
    /// Asks the host; what it does not say is empty.
    pub fn ask() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Host {
            resolv_conf: read("/etc/resolv.conf"),
            upstream: read("/run/systemd/resolve/resolv.conf"),
            routes: read("/proc/net/route"),
        }
    }

    /// Arguments for passt. `has_dns_host` tells whether this passt knows the option `--dns-host`; it is asked only
    /// when that matters.
    pub fn arguments(&self, has_dns_host: impl FnOnce() -> bool) -> Vec<String> {
        let local = servers(&self.resolv_conf);
        if local.iter().any(|server| !server.is_loopback()) {
            return Vec::new();
        }
        let mut upstream = servers(&self.upstream);
        upstream.retain(|server| !server.is_loopback());
        if !upstream.is_empty() {
            return upstream.iter().flat_map(|server| ["--dns".into(), server.to_string()]).collect();
        }
        let local = match local.iter().find(|server| server.is_ipv4()) {
            Some(local) => *local,
            // Without a server, the C library asks this one.
            None if local.is_empty() => Ipv4Addr::LOCALHOST.into(),
            None => return Vec::new(),
        };
        let Some(gateway) = self.gateway() else { return Vec::new() };
        // An old passt forwards to the first server that it is told of, or to 127.0.0.1.
        let host = if has_dns_host() { "--dns-host" } else { "--dns" };
        let (local, gateway) = (local.to_string(), gateway.to_string());
        [host, &local, "--dns", &gateway, "--dns-forward", &gateway].map(String::from).into()
    }

    /// The gateway of the first default route.
    fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (destination, gateway) = (fields.next()?, fields.next()?);
            // In the byte order of the host, as the kernel holds it in memory.
            let gateway = u32::from_str_radix(gateway, 16).ok().filter(|&gateway| gateway != 0)?;
            (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
        })
    }
}

/// The name servers in a `resolv.conf`.
fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse().ok();
    resolv_conf.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\n\
        eth0\t000200C0\t00000000\t0001\n\
        tun0\t00000000\t00000000\t0001\n\
        eth0\t00000000\t010200C0\t0003\n";

    fn of(resolv_conf: &str, upstream: &str, new: bool) -> String {
        let host = Host { resolv_conf: resolv_conf.into(), upstream: upstream.into(), routes: ROUTES.into() };
        host.arguments(|| new).join(" ")
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
        assert_eq!(of(resolv, "", true), "--dns-host 127.0.0.2 --dns 192.0.2.1 --dns-forward 192.0.2.1");
        assert_eq!(of(resolv, "", false), "--dns 127.0.0.2 --dns 192.0.2.1 --dns-forward 192.0.2.1");
        assert_eq!(of("", "", false), "--dns 127.0.0.1 --dns 192.0.2.1 --dns-forward 192.0.2.1");
        assert_eq!(of("nameserver ::1", "", true), "");
        let lost = Host { resolv_conf: resolv.into(), upstream: String::new(), routes: String::new() };
        assert!(lost.arguments(|| true).is_empty());
    }
}
