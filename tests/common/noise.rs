//! Bytes that look random, that packers cannot make smaller, and that are the same in every run (xorshift64*).

/// So many bytes, in words of eight; each seed has its own.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    (0..size / 8).flat_map(|_| next()).collect()
}
