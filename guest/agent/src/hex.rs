//! Bytes in hexadecimal text.

use alloc::vec::Vec;

/// The bytes of a text of hexadecimal digits.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut pairs = text.as_bytes().chunks_exact(2);
    let bytes = pairs.by_ref().map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect();
    if pairs.remainder().is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        assert_eq!(decode("00fF7a"), Some(vec![0, 255, 0x7a]));
        assert_eq!(decode(""), Some(vec![]));
        assert_eq!((decode("0"), decode("0g"), decode("é1")), (None, None, None));
    }
}
