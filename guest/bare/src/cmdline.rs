//! The kernel command line: words separated by spaces, `key=value` or a bare word; unknown ones are the
//! VMM's and are skipped.
//!
//! Looked at eight bytes at a time, because an instruction can cost a microsecond.

use core::sync::atomic::{AtomicU64, Ordering};

static START: AtomicU64 = AtomicU64::new(0);

/// Says where the NUL-terminated line is; 0 means there is none.
pub fn remember(address: u64) {
    START.store(address, Ordering::Relaxed);
}

/// The length of the word that starts here: up to a space or the end of the line.
///
/// # Safety
/// `word` points into the line, which ends with a NUL; up to 7 bytes behind that are read.
#[inline(always)]
unsafe fn word_length(word: *const u8) -> usize {
    let mut length = 0;
    loop {
        // SAFETY: no separator has been seen before this.
        let eight = unsafe { word.add(length).cast::<u64>().read_unaligned() };
        // The highest bit of each byte below 0x21; exact for the lowest such byte.
        let separators = eight.wrapping_sub(0x2121_2121_2121_2121) & !eight & 0x8080_8080_8080_8080;
        if separators != 0 {
            return length + separators.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
}

/// If the line at `address` starts with `test=exit`: the value of `end=` directly behind, or nothing. It
/// looks no further, so that this test costs a few dozen instructions.
///
/// # Safety
/// The address is 0 or that of the line, which ends with a NUL.
#[inline(always)]
pub unsafe fn exit_at_once(address: u64) -> Option<&'static [u8]> {
    let line = address as *const u8;
    // SAFETY: bytes are read only as long as none before them is the end of the line.
    unsafe {
        if line.is_null() || line.cast::<u64>().read_unaligned() != u64::from_le_bytes(*b"test=exi") {
            return None;
        }
        if line.add(8).cast::<u16>().read_unaligned() == u16::from_le_bytes(*b"t\0") {
            return Some(b"");
        }
        if line.add(8).cast::<u16>().read_unaligned() != u16::from_le_bytes(*b"t ") {
            return None;
        }
        if line.add(10).cast::<u32>().read_unaligned() != u32::from_le_bytes(*b"end=") {
            return Some(b"");
        }
        let value = line.add(14);
        Some(core::slice::from_raw_parts(value, word_length(value)))
    }
}

struct Words(*const u8);

impl Iterator for Words {
    type Item = &'static [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'static [u8]> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: `self.0` stays inside the line, which ends with a NUL, or at most 7 bytes behind it, in
        // the same RAM.
        unsafe {
            while *self.0 == b' ' {
                self.0 = self.0.add(1);
            }
            let word = self.0;
            let length = word_length(word);
            self.0 = word.add(length);
            if length == 0 && *self.0 != 0 {
                self.0 = self.0.add(1);
            }
            (length != 0 || *self.0 != 0).then(|| core::slice::from_raw_parts(word, length))
        }
    }
}

fn words() -> Words {
    Words(START.load(Ordering::Relaxed) as *const u8)
}

/// The whole line.
pub fn line() -> &'static [u8] {
    let start = START.load(Ordering::Relaxed) as *const u8;
    if start.is_null() {
        return b"";
    }
    // SAFETY: the line ends with a NUL.
    unsafe { core::ffi::CStr::from_ptr(start.cast()).to_bytes() }
}

/// The values of some `key=value`s, found in one pass: the last one wins, as in Linux.
#[inline(always)]
pub fn values<const N: usize>(keys: [&str; N]) -> [Option<&'static [u8]>; N] {
    let mut found = [None; N];
    for word in words() {
        for (key, value) in keys.iter().zip(&mut found) {
            if word.len() > key.len() && word[key.len()] == b'=' && word.starts_with(key.as_bytes()) {
                *value = Some(&word[key.len() + 1..]);
            }
        }
    }
    found
}

/// The value of one `key=value`.
#[inline(always)]
pub fn value(key: &str) -> Option<&'static [u8]> {
    let [value] = values([key]);
    value
}

/// Whether the bare word is there.
#[inline(never)]
pub fn flag(key: &str) -> bool {
    words().any(|word| word == key.as_bytes())
}

/// The value of `key` as a number, decimal or `0x…`, or else `default`.
#[inline(never)]
pub fn number(key: &str, default: u64) -> u64 {
    value(key).and_then(parse).unwrap_or(default)
}

fn parse(text: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(text).ok()?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
