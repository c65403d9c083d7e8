//! Linux guests on the network: over a tap, and over passt.

use crate::common::linux::guest_in_world;
use crate::common::world::{self, GATEWAY, GUEST_ON_PASST, GUEST_ON_TAP, HOST_ON_TAP, SERVER};
use crate::common::{host, machine::Ended};
use crate::need;
use crate::server;

/// Fetches from the host, and has the host fetch the same from here: what comes back has gone both ways.
/// `$1` is the server, `$2` where the host finds this guest.
const TRANSFER: &str = "transfer() { mkdir -p /tmp/www; busybox httpd -p 80 -h /tmp/www
wget -q -O /tmp/www/data http://$1:8000/data || exit 1; echo down $(md5sum </tmp/www/data)
wget -q -O /tmp/back http://$1:8000/fetch/$2/data || exit 1; echo up $(md5sum </tmp/back); }
";

/// What came is what the server has.
#[track_caller]
fn transferred(ended: &Ended) {
    let wanted = server::data_md5();
    for way in ["down ", "up "] {
        assert!(ended.value(way).starts_with(&wanted), "{way}is not {wanted}\n{ended}");
    }
}

#[test]
fn over_a_tap() {
    need!(host::linux(), world::offered());
    let script = format!(
        "{TRANSFER}ip addr add {GUEST_ON_TAP}/24 dev eth0; ip link set eth0 up
ping -c 3 -W 5 {HOST_ON_TAP} || exit 1
transfer {HOST_ON_TAP} {GUEST_ON_TAP}:80"
    );
    let machine = guest_in_world("tap=tap0", &server::start(), &script).words("rvmm.net=off");
    let ended = machine.cpus(2).run();
    transferred(ended.succeeded().said("3 packets received"));
}

#[test]
fn over_passt() {
    need!(host::linux(), world::offered(), host::program("passt").map(drop));
    // Without any set-up: address, route and name server come by DHCP.
    let script = format!(
        "{TRANSFER}ip -4 -o addr show eth0; nslookup host.test
wget -q -T 5 -O /dev/null http://{GATEWAY}:8000/data && {{ echo the loopback is open; exit 1; }}
transfer host.test 127.0.0.1:8080"
    );
    let machine = guest_in_world("user,publish=127.0.0.1:8080:80", &server::start(), &script);
    let ended = machine.run();
    ended.succeeded().said(&format!("inet {GUEST_ON_PASST}/24")).said(SERVER);
    transferred(&ended);
}

#[test]
fn a_ping_over_passt() {
    need!(host::linux(), world::offered(), host::program("passt").map(drop));
    // passt sends pings by sockets that the kernel gives only to these groups.
    let groups = "echo 0 0 >/proc/sys/net/ipv4/ping_group_range; ";
    let machine = guest_in_world("user", groups, &format!("ping -c 3 -W 5 {SERVER}"));
    machine.run().succeeded().said("3 packets received");
}

#[test]
fn the_hosts_loopback_by_the_gateway_if_that_is_wanted() {
    need!(host::linux(), world::offered(), host::program("passt").map(drop));
    let script = format!("wget -q -O - http://{GATEWAY}:8000/data | md5sum");
    let machine = guest_in_world("user,map-gw", &server::start(), &script);
    machine.run().succeeded().said(&server::data_md5());
}
