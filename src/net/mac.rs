//! Ethernet addresses (IEEE 802, six bytes written `02:00:5e:10:00:ff`).

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Claim;
use crate::sys::random;

/// The address of one network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A fresh address from the locally administered range: 46 random bits, so that machines on one network differ.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        random::fill(&mut bytes)?;
        // Locally administered, and the address of one interface, not of a group.
        bytes[0] = bytes[0] & !1 | 2;
        Ok(Mac(bytes))
    }

    /// Takes the address for a machine of this process; `None` if another one has it.
    pub fn claim(self) -> Option<Claim> {
        Claim::take(&format!("mac/{self}"))
    }

    /// Whether one interface can have this address: it is neither zero nor that of a group.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// The text is no address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not an Ethernet address of one interface, like 02:00:00:00:00:01")]
pub struct NotMac;

impl FromStr for Mac {
    type Err = NotMac;

    fn from_str(text: &str) -> Result<Self, NotMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NotMac)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(NotMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotMac)?;
        }
        let mac = Mac(bytes);
        if parts.next().is_some() || !mac.is_unicast() { Err(NotMac) } else { Ok(mac) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NotMac;

    fn try_from(text: String) -> Result<Self, NotMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mac: Mac = "02:fC:00:0a:0B:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:fc:00:0a:0b:ff");
        for bad in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(NotMac), "{bad}");
        }
    }

    #[test]
    fn one_machine_has_an_address_at_a_time() {
        let mac = Mac::random().unwrap();
        let claim = mac.claim().unwrap();
        assert!(mac.claim().is_none() && Mac::random().unwrap().claim().is_some());
        drop(claim);
        assert!(mac.claim().is_some());
    }

    #[test]
    fn refuses_groups_and_nobody() {
        for bad in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert_eq!(bad.parse::<Mac>(), Err(NotMac), "{bad}");
        }
    }

    #[test]
    fn random_ones_differ_and_are_local() {
        let macs: Vec<_> = (0..100).map(|_| Mac::random().unwrap()).collect();
        for (i, mac) in macs.iter().enumerate() {
            assert!(mac.is_unicast() && mac.0[0] & 2 != 0, "{mac}");
            assert!(!macs[..i].contains(mac));
        }
    }
}
