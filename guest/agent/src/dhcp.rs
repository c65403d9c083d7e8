//! What a machine and a DHCP server say to each other, as IPv4 packets (RFC 2131, RFC 2132, RFC 768, RFC 791).
//!
//! ```text
//!   IPv4 20 │ UDP 8 │ op htype hlen hops │ xid │ secs flags │ ciaddr yiaddr siaddr giaddr │ chaddr 16 │ 192 │ cookie │ options
//! ```

use alloc::string::String;
use alloc::vec::Vec;

/// An IPv4 address.
pub type Address = [u8; 4];

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const UDP: u8 = 17;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options: what RFC 2131 has, and the cookie.
const FIXED: usize = 240;
/// Name servers that are kept: a resolver asks no more.
const MOST_SERVERS: usize = 3;

mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const WANTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const END: u8 = 255;
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The number of this exchange.
    pub xid: u32,
    /// Its name.
    pub hostname: String,
}

/// What the machine may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Address,
    /// Bits of its network.
    pub prefix: u32,
    /// The way out.
    pub gateway: Option<Address>,
    /// Name servers.
    pub dns: Vec<Address>,
    /// The domain in which names are looked for.
    pub domain: Option<String>,
    /// The largest packet, in bytes.
    pub mtu: Option<u16>,
    /// Who says so.
    pub server: Address,
    /// For how long, in seconds; `u32::MAX` is for ever.
    pub seconds: u32,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The machine could have this.
    Offer(Lease),
    /// The machine has this.
    Acknowledge(Lease),
    /// The machine cannot have what it asked for.
    Refuse,
}

impl Client {
    /// Asks whoever is there for an address.
    pub fn discover(&self) -> Vec<u8> {
        self.packet(1, [0; 4], &[])
    }

    /// Takes what was offered.
    pub fn request(&self, lease: &Lease) -> Vec<u8> {
        let mut options = Vec::from([option::WANTED_ADDRESS, 4]);
        options.extend(lease.address);
        options.extend([option::SERVER, 4]);
        options.extend(lease.server);
        self.packet(3, [0; 4], &options)
    }

    /// Asks whoever is there to keep what it has: what the last ones ask who get no answer, and a server answers that always.
    pub fn renewal(&self, lease: &Lease) -> Vec<u8> {
        self.packet(3, lease.address, &[])
    }

    fn packet(&self, message: u8, own: Address, more: &[u8]) -> Vec<u8> {
        let mut dhcp = Vec::from([1, 1, 6, 0]);
        dhcp.extend(self.xid.to_be_bytes());
        // The answer is for all as long as the machine has no address.
        dhcp.extend([0, 0, if own == [0; 4] { 0x80 } else { 0 }, 0]);
        dhcp.extend(own);
        dhcp.extend([0; 12]);
        dhcp.extend(self.mac);
        dhcp.resize(FIXED - COOKIE.len(), 0);
        dhcp.extend(COOKIE);
        dhcp.extend([option::MESSAGE, 1, message]);
        dhcp.extend(more);
        let name = self.hostname.as_bytes();
        if (1..=63).contains(&name.len()) {
            dhcp.extend([option::HOSTNAME, name.len() as u8]);
            dhcp.extend(name);
        }
        let wanted = [option::MASK, option::ROUTER, option::DNS, option::DOMAIN, option::MTU];
        dhcp.extend([option::PARAMETERS, wanted.len() as u8]);
        dhcp.extend(wanted);
        dhcp.push(option::END);
        // The least that a server must take (BOOTP).
        dhcp.resize(dhcp.len().max(300), 0);

        let udp = 8 + dhcp.len();
        let total = (20 + udp) as u16;
        let mut packet = Vec::from([0x45, 0x10]);
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        packet.extend(own);
        packet.extend([255; 4]);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        for word in [CLIENT_PORT, SERVER_PORT, udp as u16, 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(dhcp);
        packet
    }

    /// Understands a packet, if it is a server's answer to this client. Everything in it may be a lie; what cannot be is
    /// left out, and without an address that can be the whole answer is.
    pub fn answer(&self, packet: &[u8]) -> Option<Answer> {
        let dhcp = payload(packet)?;
        let head = dhcp.get(..FIXED)?;
        let is_ours = head[..3] == [2, 1, 6]
            && head[4..8] == self.xid.to_be_bytes()
            && head[28..34] == self.mac
            && head[236..] == COOKIE;
        if !is_ours {
            return None;
        }
        let options = &dhcp[FIXED..];
        let message = find(options, option::MESSAGE)?;
        if message == [6] {
            return Some(Answer::Refuse);
        }
        let address: Address = head[16..20].try_into().ok()?;
        let mask = addresses(find(options, option::MASK).unwrap_or(&[255, 255, 255, 0])).next();
        let prefix =
            mask.map(u32::from_be_bytes).filter(|mask| mask.leading_ones() + mask.trailing_zeros() >= 32);
        let text = |bytes: &[u8]| {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-".contains(byte);
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            (!text.is_empty() && text.iter().all(plain)).then(|| String::from_utf8_lossy(text).into_owned())
        };
        let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
        let lease = Lease {
            address: Some(address).filter(|address| is_host(*address))?,
            prefix: prefix?.leading_ones(),
            gateway: find(options, option::ROUTER).and_then(|list| addresses(list).find(|one| is_host(*one))),
            dns: find(options, option::DNS)
                .map(|list| {
                    addresses(list).filter(|one| *one != [0; 4] && one[0] < 224).take(MOST_SERVERS).collect()
                })
                .unwrap_or_default(),
            domain: find(options, option::DOMAIN).and_then(text),
            mtu: find(options, option::MTU)
                .and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)))
                .filter(|mtu| *mtu >= 1280),
            server: addresses(find(options, option::SERVER)?).next()?,
            seconds: find(options, option::LEASE_TIME).and_then(number).unwrap_or(u32::MAX),
        };
        match message {
            [2] => Some(Answer::Offer(lease)),
            [5] => Some(Answer::Acknowledge(lease)),
            _ => None,
        }
    }
}

/// Whether a host can have the address: this network, loopback, multicast and the rest are not for hosts.
fn is_host(address: Address) -> bool {
    !matches!(address[0], 0 | 127 | 224..)
}

/// What a UDP packet to a DHCP client carries.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    let head = packet.get(..20)?;
    let (version, words) = (head[0] >> 4, usize::from(head[0] & 15));
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    if version != 4 || words < 5 || head[9] != UDP || is_fragment {
        return None;
    }
    let udp = packet.get(..total)?.get(4 * words..)?;
    let ports = udp.get(..4)?;
    if ports[..2] != SERVER_PORT.to_be_bytes() || ports[2..] != CLIENT_PORT.to_be_bytes() {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    udp.get(8..len)
}

/// The value of an option.
fn find(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [] | [option::END, ..] => return None,
            [code, len, rest @ ..] => {
                let (value, after) = rest.split_at_checked((*len).into())?;
                if *code == wanted {
                    return Some(value);
                }
                options = after;
            }
            [_] => return None,
        }
    }
}

fn addresses(bytes: &[u8]) -> impl Iterator<Item = Address> {
    bytes.chunks_exact(4).filter_map(|chunk| chunk.try_into().ok())
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client { mac: [2, 0, 0, 0, 0, 9], xid: 0x1234_5678, hostname: "box".into() }
    }

    /// A server's packet, made from the client's own by turning it round.
    fn reply(message: u8, address: Address, options: &[&[u8]]) -> Vec<u8> {
        let mut packet = client().discover();
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet[28] = 2;
        packet[44..48].copy_from_slice(&address);
        packet.truncate(28 + FIXED);
        packet.extend([option::MESSAGE, 1, message]);
        options.iter().for_each(|option| packet.extend(*option));
        packet.push(option::END);
        finish(packet)
    }

    fn finish(mut packet: Vec<u8>) -> Vec<u8> {
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
        packet
    }

    const SERVER: &[u8] = &[54, 4, 192, 0, 2, 1];

    #[test]
    fn asks_as_servers_want_it() {
        let packet = client().discover();
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!((packet.len(), usize::from(u16::from_be_bytes([packet[2], packet[3]]))), (328, 328));
        assert_eq!(find(&packet[28 + FIXED..], option::MESSAGE), Some(&[1][..]));
        assert_eq!(find(&packet[28 + FIXED..], option::HOSTNAME), Some(&b"box"[..]));
        let Some(Answer::Offer(lease)) = client().answer(&reply(2, [192, 0, 2, 7], &[SERVER])) else {
            panic!("an offer")
        };
        let packet = client().request(&lease);
        assert_eq!(find(&packet[28 + FIXED..], option::WANTED_ADDRESS), Some(&[192, 0, 2, 7][..]));
        assert_eq!(find(&packet[28 + FIXED..], option::SERVER), Some(&[192, 0, 2, 1][..]));
        // Who has an address says so, and names no server (RFC 2131, table 4).
        let packet = client().renewal(&lease);
        assert_eq!(
            (&packet[12..16], &packet[38..44], checksum(&packet[..20])),
            (&[192, 0, 2, 7][..], &[0, 0, 192, 0, 2, 7][..], 0)
        );
        for absent in [option::WANTED_ADDRESS, option::SERVER] {
            assert_eq!(find(&packet[28 + FIXED..], absent), None);
        }
    }

    #[test]
    fn understands_a_lease() {
        let options: [&[u8]; 8] = [
            &[0, 0],
            &[1, 4, 255, 255, 254, 0],
            SERVER,
            &[3, 8, 192, 0, 2, 1, 192, 0, 2, 2],
            &[6, 16, 0, 0, 0, 0, 9, 9, 9, 9, 127, 0, 0, 53, 1, 1, 1, 1],
            b"\x0f\x09home.arpa",
            &[26, 2, 0xff, 0xf0],
            &[51, 4, 0, 0, 0x0e, 0x10],
        ];
        let answer = client().answer(&reply(5, [192, 0, 2, 7], &options));
        let lease = Lease {
            address: [192, 0, 2, 7],
            prefix: 23,
            gateway: Some([192, 0, 2, 1]),
            dns: vec![[9, 9, 9, 9], [127, 0, 0, 53], [1, 1, 1, 1]],
            domain: Some("home.arpa".into()),
            mtu: Some(0xfff0),
            server: [192, 0, 2, 1],
            seconds: 3600,
        };
        assert_eq!(answer, Some(Answer::Acknowledge(lease)));
        assert_eq!(client().answer(&reply(6, [0; 4], &[SERVER])), Some(Answer::Refuse));
    }

    #[test]
    fn lies_are_not_believed() {
        let good = reply(2, [192, 0, 2, 7], &[SERVER]);
        assert!(client().answer(&good).is_some());
        // Cut off anywhere, it is nothing, or what the options that are left say.
        for len in 0..good.len() {
            assert_eq!(client().answer(&good[..len]), None, "{len} bytes");
            if len > 28 {
                client().answer(&finish(good[..len].to_vec()));
            }
        }
        // Version, length of the header, protocol, port, op, hardware, xid, MAC, cookie; a fragment.
        for at in [0, 6, 9, 21, 23, 28, 29, 30, 32, 56, 264] {
            let mut bad = good.clone();
            bad[at] ^= 0x31;
            assert_eq!(client().answer(&bad), None, "byte {at}");
        }
        for address in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            assert_eq!(client().answer(&reply(2, address, &[SERVER])), None, "{address:?}");
        }
        assert_eq!(client().answer(&reply(2, [192, 0, 2, 7], &[])), None, "nobody says so");
        assert_eq!(client().answer(&reply(2, [192, 0, 2, 7], &[SERVER, &[1, 4, 255, 0, 255, 0]])), None);
        let odd = reply(
            2,
            [192, 0, 2, 7],
            &[SERVER, &[3, 3, 1, 1, 1], &[15, 4, b'a', b'\n', b'b', b' '], &[26, 1, 9]],
        );
        let Some(Answer::Offer(lease)) = client().answer(&odd) else { panic!("an offer") };
        assert_eq!((lease.gateway, lease.domain, lease.mtu), (None, None, None));
        // An option that is longer than the packet.
        assert_eq!(client().answer(&reply(2, [192, 0, 2, 7], &[&[54, 255, 1]])), None);
    }
}
