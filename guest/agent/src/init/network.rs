//! The network: loopback, and one interface with an address that the host says or a DHCP server gives (`netdevice(7)`, `packet(7)`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use agent::container::Network;
use agent::dhcp::{Answer, Client, Lease};

use super::complain;
use crate::identity;
use crate::process::{self, Fork};
use crate::sys::{self, Clock, Errno, Fd, Poll, Result, call, nr};
use crate::tree;

const INTERFACE: &str = "eth0";

/// A lease for less is taken for one of this time, in seconds.
const LEAST: u32 = 4;

/// The shortest time between two requests for a longer lease, in nanoseconds.
const SHORTEST: u64 = 1_000_000_000;

/// How long nobody is asked if nobody answers, in milliseconds.
const LONELY: u64 = 60_000;

/// How long an answer is waited for before the question is asked again, in milliseconds.
const PATIENCE: [u64; 7] = [100, 200, 400, 1000, 2000, 4000, 8000];

const AF_INET: usize = 2;
const AF_PACKET: u16 = 17;
const DATAGRAM: usize = 2;
const ETH_P_IP: u16 = 0x0800;

const SIOCGIFFLAGS: usize = 0x8913;
const SIOCSIFFLAGS: usize = 0x8914;
const SIOCSIFMTU: usize = 0x8922;
const SIOCGIFHWADDR: usize = 0x8927;
const SIOCGIFINDEX: usize = 0x8933;
const UP: u16 = 1;

/// What the machine's files say of the network.
#[derive(Default)]
pub struct Names {
    /// Its address.
    pub address: Option<String>,
    /// Name servers.
    pub servers: Vec<String>,
    /// The domain in which names are looked for.
    pub domain: Option<String>,
    /// What a DHCP server said.
    pub lease: Option<Lease>,
}

/// Brings the network up, as far as it is wanted and there.
pub fn start(network: &Network, hostname: &str) -> Names {
    let result = raise("lo").and_then(|()| match network {
        Network::None => Ok(Names::default()),
        _ if !tree::exists(&format!("/sys/class/net/{INTERFACE}")) => Ok(Names::default()),
        Network::Static { address, gateway, dns } => {
            raise(INTERFACE)?;
            identity::set_address(INTERFACE, "address", address)?;
            gateway.iter().try_for_each(|gateway| identity::set_address(INTERFACE, "gateway", gateway))?;
            let address = address.split('/').next().map(String::from);
            Ok(Names { address, servers: dns.clone(), ..Names::default() })
        }
        Network::Dhcp => {
            raise(INTERFACE)?;
            match obtain(hostname)? {
                Some(lease) => take(&lease),
                None => {
                    complain("no DHCP server answers: the machine has no address");
                    Ok(Names::default())
                }
            }
        }
    });
    result.unwrap_or_else(|error| {
        complain(&format!("cannot set up the network: {error}"));
        Names::default()
    })
}

/// Takes an interface into use.
fn raise(name: &str) -> Result {
    let mut request = identity::request(name, 0, &[], 16)?;
    ask(SIOCGIFFLAGS, &mut request)?;
    let flags = u16::from_ne_bytes([request[16], request[17]]) | UP;
    ask(SIOCSIFFLAGS, &mut identity::request(name, flags, &[], 16)?)
}

/// One request about an interface (`struct ifreq`, 40 bytes).
fn ask(number: usize, request: &mut [u8; 40]) -> Result {
    let socket = Fd(sys::plain(nr::SOCKET, [AF_INET, DATAGRAM, 0])? as i32);
    // SAFETY: all requests used read or write one `struct ifreq`.
    unsafe { sys::ioctl(socket.0, number, request) }.map(drop)
}

/// Gives the interface what the lease says.
fn take(lease: &Lease) -> Result<Names> {
    let text = |address: [u8; 4]| core::net::Ipv4Addr::from(address).to_string();
    let address = text(lease.address);
    identity::set_address(INTERFACE, "address", &format!("{address}/{}", lease.prefix))?;
    if let Some(mtu) = lease.mtu {
        // An interface that cannot have it stays as it is.
        let _ = ask(SIOCSIFMTU, &mut identity::request(INTERFACE, 0, &u32::from(mtu).to_ne_bytes(), 16)?);
    }
    if let Some(gateway) = lease.gateway {
        identity::set_address(INTERFACE, "gateway", &text(gateway))?;
    }
    let servers = lease.dns.iter().map(|server| text(*server)).collect();
    Ok(Names { address: Some(address), servers, domain: lease.domain.clone(), lease: Some(lease.clone()) })
}

/// Has a process renew the lease as long as the machine lives, unless it is for ever.
pub fn keep(lease: Option<Lease>, hostname: &str) {
    let Some(lease) = lease.filter(|lease| lease.seconds != u32::MAX) else { return };
    if let Ok(Fork::Child) = process::fork() {
        renew_always(lease, hostname)
    }
}

/// When nobody has renewed the lease in time, or the server refuses to, another one is asked for; who finds nobody keeps its address.
fn renew_always(mut lease: Lease, hostname: &str) -> ! {
    loop {
        let mut answer = renew(&lease, hostname);
        let new = loop {
            match answer {
                Ok(Some(new)) => break new,
                _ => answer = obtain(hostname),
            }
            if !matches!(answer, Ok(Some(_))) {
                sleep(LONELY);
            }
        };
        // What has not changed may have been changed by the guest since.
        if new != (Lease { seconds: new.seconds, server: new.server, ..lease }) {
            let _ = take(&new);
        }
        lease = new;
    }
}

fn sleep(milliseconds: u64) {
    let limit = sys::now(Clock::Monotonic) + milliseconds * 1_000_000;
    while sys::now(Clock::Monotonic) < limit {
        let _ = sys::poll(&mut [], Some(milliseconds));
    }
}

/// Has the lease renewed when half of its time is over, or half of what is left then (RFC 2131, 4.4.5). `None` if it is over.
fn renew(lease: &Lease, hostname: &str) -> Result<Option<Lease>> {
    let end = sys::now(Clock::Monotonic) + u64::from(lease.seconds.max(LEAST)) * 1_000_000_000;
    loop {
        let left = end.saturating_sub(sys::now(Clock::Monotonic));
        if left < SHORTEST {
            return Ok(None);
        }
        sleep(left / 2_000_000);
        // The interface may have become another one: a machine that was saved goes on as somebody else.
        let (wire, client) = open(hostname)?;
        let _ = wire.send(&client.renewal(lease));
        let limit = sys::now(Clock::Monotonic) + SHORTEST;
        while let Some(packet) = wire.receive(limit)? {
            match client.answer(&packet) {
                Some(Answer::Acknowledge(new)) => return Ok(Some(new)),
                Some(Answer::Refuse) => return Ok(None),
                _ => {}
            }
        }
    }
}

/// The interface, and who asks there.
fn open(hostname: &str) -> Result<(Wire, Client)> {
    let mut request = identity::request(INTERFACE, 0, &[], 16)?;
    ask(SIOCGIFHWADDR, &mut request)?;
    let mac: [u8; 6] = request[18..24].try_into().map_err(|_| Errno::INVAL)?;
    ask(SIOCGIFINDEX, &mut request)?;
    let index = i32::from_ne_bytes(request[16..20].try_into().map_err(|_| Errno::INVAL)?);
    let wire = Wire::open(index)?;
    let mut xid = [0; 4];
    // SAFETY: the kernel writes at most four bytes. If it has no random numbers yet, the MAC address tells us from others.
    let _ = unsafe { call(nr::GETRANDOM, [xid.as_mut_ptr() as usize, 4, 1, 0, 0, 0]) };
    Ok((wire, Client { mac, xid: u32::from_ne_bytes(xid), hostname: hostname.into() }))
}

/// Gets a lease, unless nobody gives one.
fn obtain(hostname: &str) -> Result<Option<Lease>> {
    let (wire, client) = open(hostname)?;
    let mut patience = PATIENCE.into_iter();
    let mut offered: Option<Lease> = None;
    while let Some(milliseconds) = patience.next() {
        let question = offered.as_ref().map_or_else(|| client.discover(), |lease| client.request(lease));
        // Not while the link comes up, perhaps.
        let _ = wire.send(&question);
        let limit = sys::now(Clock::Monotonic) + milliseconds * 1_000_000;
        while let Some(packet) = wire.receive(limit)? {
            match (client.answer(&packet), &offered) {
                (Some(Answer::Offer(lease)), None) => {
                    offered = Some(lease);
                    patience = PATIENCE.into_iter();
                    break;
                }
                (Some(Answer::Acknowledge(lease)), Some(wanted)) if lease.server == wanted.server => {
                    return Ok(Some(lease));
                }
                (Some(Answer::Refuse), Some(_)) => {
                    offered = None;
                    break;
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

/// A socket for whole IPv4 packets on one interface, which has no address yet.
struct Wire {
    socket: Fd,
    everybody: [u8; 20],
}

impl Wire {
    fn open(index: i32) -> Result<Self> {
        let socket = sys::plain(nr::SOCKET, [AF_PACKET.into(), DATAGRAM, ETH_P_IP.to_be().into()])?;
        let wire = Wire { socket: Fd(socket as i32), everybody: address(index) };
        let arguments = [wire.socket.0 as usize, wire.everybody.as_ptr() as usize, 20, 0, 0, 0];
        // SAFETY: the kernel reads an address of 20 bytes.
        unsafe { call(nr::BIND, arguments) }?;
        wire.socket.set_nonblocking()?;
        Ok(wire)
    }

    fn send(&self, packet: &[u8]) -> Result {
        let to = self.everybody.as_ptr() as usize;
        let arguments = [self.socket.0 as usize, packet.as_ptr() as usize, packet.len(), 0, to, 20];
        // SAFETY: the kernel reads the packet and an address of 20 bytes.
        sys::retry(|| unsafe { call(nr::SENDTO, arguments) }).map(drop)
    }

    /// The next packet, unless the time is over.
    fn receive(&self, limit: u64) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 2048];
        loop {
            match sys::read(self.socket.0, &mut buffer) {
                Ok(got) => {
                    buffer.truncate(got);
                    return Ok(Some(buffer));
                }
                Err(Errno::AGAIN) => {}
                // The interface went down and up: packets may still come.
                Err(Errno(100)) => {}
                Err(error) => return Err(error),
            }
            let left = limit.saturating_sub(sys::now(Clock::Monotonic)).div_ceil(1_000_000);
            if left == 0 {
                return Ok(None);
            }
            let _ = sys::poll(&mut [Poll::new(self.socket.0, Poll::IN)], Some(left));
        }
    }
}

/// `struct sockaddr_ll` of everybody on an interface.
fn address(index: i32) -> [u8; 20] {
    let mut address = [0; 20];
    address[..2].copy_from_slice(&AF_PACKET.to_ne_bytes());
    address[2..4].copy_from_slice(&ETH_P_IP.to_be_bytes());
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    address[11] = 6;
    address[12..18].fill(0xff);
    address
}
