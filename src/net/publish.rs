//! A port of the host whose traffic goes to the guest, written `[ADDR:]HOST:GUEST[/udp]`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Claim;

/// Whose ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// The host's address that is listened on; all of them without one.
    pub address: Option<IpAddr>,
    /// Port of the host, not 0.
    pub host: u16,
    /// Port of the guest, not 0.
    pub guest: u16,
    /// Whose ports they are.
    pub protocol: Protocol,
}

/// What takes the form of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not a port to publish: it is written [ADDRESS:]HOST_PORT:GUEST_PORT[/udp]")]
pub struct NotPublish;

impl Publish {
    /// Takes the port, so that one that is not free is known early: against everybody while the socket lives, against other
    /// machines while the claim does, which can go on when the port is listened at.
    pub fn take(&self) -> Result<(OwnedFd, Claim), (SocketAddr, io::Error)> {
        let bind = |ip: IpAddr| {
            let address = SocketAddr::new(ip, self.host);
            let claim = Claim::take(&format!("port/{}/{address}", self.protocol));
            let claim = claim.ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRINUSE));
            let result = claim.and_then(|claim| {
                let socket = match self.protocol {
                    Protocol::Tcp => TcpListener::bind(address).map(OwnedFd::from),
                    Protocol::Udp => UdpSocket::bind(address).map(OwnedFd::from),
                };
                Ok((socket?, claim))
            });
            result.map_err(|error| (address, error))
        };
        match self.address {
            Some(address) => bind(address),
            // One socket for both families, unless the host has no IPv6.
            None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
                Err((_, error)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    bind(Ipv4Addr::UNSPECIFIED.into())
                }
                result => result,
            },
        }
    }
}

impl FromStr for Publish {
    type Err = NotPublish;

    fn from_str(text: &str) -> Result<Self, NotPublish> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(NotPublish),
        };
        let port = |text: &str| match text.parse() {
            Ok(port @ 1_u16..) if text.bytes().all(|digit| digit.is_ascii_digit()) => Ok(port),
            _ => Err(NotPublish),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or(NotPublish)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
                let address = match bare {
                    Some(inner) => inner.parse().map(IpAddr::V6),
                    None => address.parse().map(IpAddr::V4),
                };
                (Some(address.map_err(|_| NotPublish)?), host)
            }
        };
        Ok(Publish { address, host: port(host)?, guest: port(guest)?, protocol })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl TryFrom<String> for Publish {
    type Error = NotPublish;

    fn try_from(text: String) -> Result<Self, NotPublish> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> String {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["8080:80", "127.0.0.1:53:5353/udp", "[::1]:2222:22", "1:65535"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("8080:80/tcp".parse::<Publish>().unwrap().to_string(), "8080:80");
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "+80:80",
            "a:80",
            "80:80/",
            "80:80/sctp",
            "::1:80:80",
            "[127.0.0.1]:80:80",
            "1.2.3:80:80",
            "80:80:80",
        ] {
            assert_eq!(bad.parse::<Publish>(), Err(NotPublish), "{bad}");
        }
    }

    #[test]
    fn finds_a_taken_port() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let publish: Publish = format!("127.0.0.1:{port}:80").parse().unwrap();
        let is_taken = || publish.take().unwrap_err().1.kind() == io::ErrorKind::AddrInUse;
        assert!(is_taken());
        drop(taken);
        let (socket, claim) = publish.take().unwrap();
        drop(socket);
        assert!(is_taken());
        drop(claim);
        publish.take().unwrap();
    }
}
