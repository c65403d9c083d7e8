//! Addresses in text: MAC, and IPv4 with the length of its prefix.

/// Six bytes from `02:00:00:00:00:01`.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Four bytes from `10.0.0.1`.
pub fn ipv4(text: &str) -> Option<[u8; 4]> {
    text.parse::<core::net::Ipv4Addr>().ok().map(|address| address.octets())
}

/// Address and mask from `10.0.0.1/24`.
pub fn network(text: &str) -> Option<([u8; 4], [u8; 4])> {
    let (address, len) = text.split_once('/')?;
    let len: u32 = len.parse().ok().filter(|len| *len <= 32)?;
    let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
    Some((ipv4(address)?, mask.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        assert_eq!(mac("02:00:0a:ff:00:01"), Some([2, 0, 10, 255, 0, 1]));
        for wrong in ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "2:0:a:f:0:1", "02:00:0a:ff:00:0g"] {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
        assert_eq!(network("10.1.2.3/24"), Some(([10, 1, 2, 3], [255, 255, 255, 0])));
        assert_eq!(network("10.1.2.3/0").map(|(_, mask)| mask), Some([0; 4]));
        assert_eq!(network("10.1.2.3/32").map(|(_, mask)| mask), Some([255; 4]));
        for wrong in ["10.1.2.3", "10.1.2/8", "10.1.2.3/33", "10.1.2.256/8"] {
            assert_eq!(network(wrong), None, "{wrong}");
        }
    }
}
