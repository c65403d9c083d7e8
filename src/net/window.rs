//! Keeps passt from losing frames: limits the TCP windows that the guest offers (RFC 9293, 3.1 and 3.8; RFC 7323, 2)
//! to what the socket to passt holds.
//!
//! passt drops what its socket has no room for, and then waits seconds for an answer. It sends no more than the guest
//! offers to take, so a smaller offer makes the drops impossible. The offer is shared by the connections that are busy.
//! passt does not look at the checksums of the guest's packets, so they are left as they are.

use std::time::{Duration, Instant};

/// Bytes at the start of a frame that [`Windows::limit`] needs: Ethernet, the longest IPv4 header, the longest TCP header.
pub const HEAD: usize = 14 + 60 + 60;

/// Connections that are remembered. One that is not is left alone.
const FLOWS: usize = 1024;

/// Smallest limit for one connection in bytes: what TCP has without scaling.
const SMALLEST: u32 = 65_535;

/// A connection without a frame for so long is not busy.
const BUSY: Duration = Duration::from_millis(100);

/// How often the busy connections are counted.
const COUNT: Duration = Duration::from_millis(10);

/// One connection, as the guest's own frames describe it.
#[derive(Clone, Copy)]
struct Flow {
    /// Hash of its addresses and ports.
    key: u64,
    /// Binary places by which the windows that the guest offers are shifted.
    shift: u8,
    seen: Instant,
}

/// The guest's connections and what they may offer.
pub struct Windows {
    /// Bytes that may be under way to the guest.
    budget: u32,
    /// By key; a newcomer replaces whoever has its place.
    flows: Vec<Option<Flow>>,
    busy: u32,
    counted: Instant,
}

impl Windows {
    /// All connections together offer to take `budget` bytes, as far as that is possible.
    pub fn new(budget: u32) -> Self {
        Windows { budget, flows: Vec::new(), busy: 1, counted: Instant::now() }
    }

    /// Looks at the first [`HEAD`] bytes of a frame that the guest sends at `now`, and lowers the window that it offers
    /// if that is too much.
    pub fn limit(&mut self, head: &mut [u8], now: Instant) {
        let Some((key, at)) = tcp(head) else { return };
        let Some(segment) = head.get_mut(at..).filter(|segment| segment.len() >= 20) else { return };
        if self.flows.is_empty() {
            self.flows = vec![None; FLOWS];
        }
        let place = &mut self.flows[key as usize % FLOWS];
        const SYN: u8 = 2;
        if segment[13] & SYN != 0 {
            *place = Some(Flow { key, shift: shift(segment), seen: now });
            return;
        }
        let Some(flow) = place.as_mut().filter(|flow| flow.key == key) else { return };
        flow.seen = now;
        let shift = flow.shift;
        let limit = (self.budget / self.busy(now)).max(SMALLEST) >> shift;
        let offered = u16::from_be_bytes([segment[14], segment[15]]);
        let allowed = u16::try_from(limit).unwrap_or(u16::MAX);
        segment[14..16].copy_from_slice(&offered.min(allowed).to_be_bytes());
    }

    /// How many connections are busy.
    fn busy(&mut self, now: Instant) -> u32 {
        if now.saturating_duration_since(self.counted) >= COUNT {
            let busy = |flow: &&Flow| now.saturating_duration_since(flow.seen) < BUSY;
            self.busy = self.flows.iter().flatten().filter(busy).count().max(1) as u32;
            self.counted = now;
        }
        self.busy
    }
}

/// If the frame holds the start of a TCP segment: a hash of addresses and ports, and where the segment starts.
fn tcp(head: &[u8]) -> Option<(u64, usize)> {
    const TCP: u8 = 6;
    let (addresses, at) = match head.get(12..14)? {
        [0x08, 0x00] => {
            let at = 14 + usize::from(head.get(14)? & 15) * 4;
            let first = head.get(20)? & 0x1f == 0 && *head.get(21)? == 0;
            (*head.get(23)? == TCP && first && at >= 34).then_some((26..34, at))?
        }
        [0x86, 0xdd] => (*head.get(20)? == TCP).then_some((22..54, 54))?,
        _ => return None,
    };
    // FNV-1a: a guest that makes collisions slows down its own connections only.
    let hash = |key: u64, byte: &u8| (key ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let key = head.get(addresses)?.iter().chain(head.get(at..at + 4)?).fold(0xcbf2_9ce4_8422_2325, hash);
    // Its lowest bits are those that pick the place.
    Some((key ^ key >> 32, at))
}

/// The window scale that a segment with SYN announces; the most that is allowed is 14.
fn shift(segment: &[u8]) -> u8 {
    let end = (usize::from(segment[12] >> 4) * 4).clamp(20, segment.len().max(20));
    let mut options = segment.get(20..end).unwrap_or_default();
    loop {
        options = match options {
            [3, 3, shift, ..] => return (*shift).min(14),
            [1, rest @ ..] => rest,
            [kind, len, ..] if *kind > 1 && *len > 1 && usize::from(*len) <= options.len() => {
                &options[usize::from(*len)..]
            }
            _ => return 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = 2;
    const ACK: u8 = 16;

    /// A frame from `port` with these flags, window and options.
    fn frame(version: u8, port: u16, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        if version == 4 {
            frame.extend([0x08, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
            frame.extend([0x20; 32]);
        }
        frame.extend(port.to_be_bytes());
        frame.extend([0, 80, 0, 0, 0, 0, 0, 0, 0, 0, (5 + options.len() as u8 / 4) << 4, flags]);
        frame.extend(window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(options);
        frame
    }

    /// What becomes of the window of a frame.
    fn offers(windows: &mut Windows, mut frame: Vec<u8>, now: Instant) -> u16 {
        let before = frame.clone();
        windows.limit(&mut frame, now);
        let at = if frame[12] == 8 { 34 } else { 54 } + 14;
        let window = u16::from_be_bytes([frame[at], frame[at + 1]]);
        frame[at..at + 2].copy_from_slice(&before[at..at + 2]);
        assert_eq!(frame, before, "the rest of the frame");
        window
    }

    #[test]
    fn limits_what_a_connection_offers() {
        let now = Instant::now();
        for version in [4, 6] {
            let windows = &mut Windows::new(256 << 10);
            let options = [2, 4, 5, 180, 1, 3, 3, 7];
            assert_eq!(offers(windows, frame(version, 1, SYN, 64_000, &options), now), 64_000);
            assert_eq!(offers(windows, frame(version, 1, ACK, 60_000, &[]), now), 2048);
            assert_eq!(offers(windows, frame(version, 1, ACK, 2000, &[]), now), 2000);
            // Without scaling, no window is too large.
            assert_eq!(offers(windows, frame(version, 2, SYN | ACK, 64_000, &[]), now), 64_000);
            assert_eq!(offers(windows, frame(version, 2, ACK, 65_535, &[]), now), 65_535);
            // Nothing is known of this one.
            assert_eq!(offers(windows, frame(version, 3, ACK, 60_000, &[]), now), 60_000);
        }
    }

    #[test]
    fn busy_connections_share() {
        let windows = &mut Windows::new(1 << 20);
        let mut now = Instant::now();
        let options = [3, 3, 10, 1];
        for port in 1..=4 {
            offers(windows, frame(4, port, SYN, 64_000, &options), now);
        }
        now += COUNT;
        assert_eq!(offers(windows, frame(4, 1, ACK, 64_000, &[]), now), 256);
        now += BUSY;
        assert_eq!(offers(windows, frame(4, 1, ACK, 64_000, &[]), now), 1024, "the others are silent");
        for port in 1..=20 {
            offers(windows, frame(4, port, SYN, 64_000, &options), now);
        }
        now += COUNT;
        assert_eq!(offers(windows, frame(4, 1, ACK, 64_000, &[]), now), 63, "the smallest limit");
    }

    #[test]
    fn takes_any_bytes() {
        let whole = frame(4, 1, SYN, 9, &[3, 3, 200, 0, 2, 1, 3, 0, 77, 0, 0, 0]);
        for version in [4, 6] {
            let whole = if version == 4 { whole.clone() } else { frame(6, 1, SYN, 9, &[5, 200, 0, 0]) };
            for len in 0..=whole.len() {
                for at in 0..len {
                    for byte in [0, 1, 2, 0x4f, 0xff] {
                        let mut bytes = whole[..len].to_vec();
                        bytes[at] = byte;
                        let mut windows = Windows::new(1 << 20);
                        windows.limit(&mut bytes, Instant::now());
                        bytes.truncate(whole.len());
                        assert_eq!(bytes.len(), len);
                    }
                }
            }
        }
        assert_eq!(shift(&frame(4, 1, SYN, 9, &[3, 3, 200, 0])[34..]), 14);
        assert_eq!(shift(&frame(4, 1, SYN, 9, &[8, 0, 3, 3])[34..]), 0);
    }
}
