//! JSON (RFC 8259) as the protocol needs it: numbers are whole, and what was read can be written.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// How deep lists and objects may lie in each other.
const DEEPEST: u32 = 16;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// Text.
    Text(String),
    /// Values in order.
    List(Vec<Value>),
    /// Values with names, in order.
    Object(Vec<(String, Value)>),
}

/// An object from names and values.
pub fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.into_iter().map(|(name, value)| (String::from(name), value)).collect())
}

/// A text.
pub fn text(text: &str) -> Value {
    Value::Text(String::from(text))
}

impl Value {
    /// The value of that name in an object, unless it is null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let Value::Object(pairs) = self else { return None };
        pairs
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
            .filter(|value| **value != Value::Null)
    }

    /// The text.
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    /// The number, if it fits.
    pub fn as_number<T: TryFrom<i128>>(&self) -> Option<T> {
        if let Value::Number(number) = self { T::try_from(*number).ok() } else { None }
    }

    /// Yes or no.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    /// The values of a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        if let Value::List(list) = self { Some(list) } else { None }
    }

    /// Reads a text that is one value.
    pub fn parse(text: &[u8]) -> Option<Value> {
        let mut parser = Parser { rest: core::str::from_utf8(text).ok()?.as_bytes() };
        let value = parser.value(DEEPEST)?;
        parser.blanks();
        parser.rest.is_empty().then_some(value)
    }

    /// Appends the value to `out`.
    pub fn write(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Number(number) => {
                let _ = write!(out, "{number}");
            }
            Value::Text(text) => quote(text, out),
            Value::List(list) => {
                out.push('[');
                for (place, value) in list.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Value::Object(pairs) => {
                out.push('{');
                for (place, (name, value)) in pairs.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    quote(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '.. => out.push(letter),
            _ => {
                let _ = write!(out, "\\u{:04x}", letter as u32);
            }
        }
    }
    out.push('"');
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn blanks(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Whether `wanted` comes next, after blanks; it is taken then.
    fn takes(&mut self, wanted: &[u8]) -> bool {
        self.blanks();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.blanks();
        match self.rest.first()? {
            b'"' => self.string().map(Value::Text),
            b'-' | b'0'..=b'9' => self.number(),
            b'[' => self.list(depth),
            b'{' => self.object(depth),
            _ if self.takes(b"null") => Some(Value::Null),
            _ if self.takes(b"true") => Some(Value::Bool(true)),
            _ if self.takes(b"false") => Some(Value::Bool(false)),
            _ => None,
        }
    }

    fn list(&mut self, depth: u32) -> Option<Value> {
        self.next();
        let mut list = Vec::new();
        if self.takes(b"]") {
            return Some(Value::List(list));
        }
        loop {
            list.push(self.value(depth)?);
            if self.takes(b"]") {
                return Some(Value::List(list));
            }
            if !self.takes(b",") {
                return None;
            }
        }
    }

    fn object(&mut self, depth: u32) -> Option<Value> {
        self.next();
        let mut pairs = Vec::new();
        if self.takes(b"}") {
            return Some(Value::Object(pairs));
        }
        loop {
            self.blanks();
            let name = self.string()?;
            if !self.takes(b":") {
                return None;
            }
            pairs.push((name, self.value(depth)?));
            if self.takes(b"}") {
                return Some(Value::Object(pairs));
            }
            if !self.takes(b",") {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |byte: &&u8| byte.is_ascii_digit() || b"-+.eE".contains(byte);
        let (digits, rest) = self.rest.split_at(self.rest.iter().take_while(is_part).count());
        self.rest = rest;
        let plain = digits.strip_prefix(b"-").unwrap_or(digits);
        let leading_zero = plain.len() > 1 && plain[0] == b'0';
        if leading_zero || digits.len() > 30 {
            return None;
        }
        core::str::from_utf8(digits).ok()?.parse().ok().map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        if self.next()? != b'"' {
            return None;
        }
        let mut out = Vec::new();
        loop {
            match self.next()? {
                b'"' => return String::from_utf8(out).ok(),
                b'\\' => {
                    let letter = match self.next()? {
                        letter @ (b'"' | b'\\' | b'/') => char::from(letter),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => self.escaped()?,
                        _ => return None,
                    };
                    out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                }
                ..b' ' => return None,
                byte => out.push(byte),
            }
        }
    }

    /// What follows `\u`: one unit of UTF-16, or two.
    fn escaped(&mut self) -> Option<char> {
        let first = self.unit()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if self.next()? != b'\\' || self.next()? != b'u' {
            return None;
        }
        let second = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + second)
    }

    fn unit(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | char::from(self.next()?).to_digit(16)?;
        }
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> Option<String> {
        let mut out = String::new();
        Value::parse(text.as_bytes())?.write(&mut out);
        Some(out)
    }

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "null",
            "true",
            "false",
            "0",
            "-5",
            "18446744073709551615",
            r#""a\"b\\c\u0007é😀""#,
            "[]",
            r#"[1,[2,[]],{}]"#,
            r#"{"op":"exec","argv":["a","b"],"env":{"K":"V"},"tty":false}"#,
        ] {
            assert_eq!(again(text).as_deref(), Some(text));
        }
        assert_eq!(again(" { \"a\" : [ 1 , 2 ] }\r\n").unwrap(), r#"{"a":[1,2]}"#);
        assert_eq!(again(r#""\u00e9\ud83d\ude00\/\n""#).unwrap(), "\"é😀/\\u000a\"");
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            " ",
            "nul",
            "truee",
            "01",
            "1.5",
            "1e3",
            "-",
            "+1",
            "[",
            "[1",
            "[1,]",
            "[1 2]",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\n\"",
            "'a'",
            "99999999999999999999999999999999999999999999",
        ] {
            assert_eq!(again(text), None, "{text:?}");
        }
        assert!(Value::parse(&[b'[', 0xff, b']']).is_none());
        assert!(again(&"[".repeat(100_000)).is_none(), "deep nests do not overflow");
    }

    #[test]
    fn finds_by_name() {
        let value = Value::parse(br#"{"a":1,"b":null,"c":"x","d":true,"e":[2]}"#).unwrap();
        assert_eq!(value.get("a").and_then(Value::as_number::<u32>), Some(1));
        assert_eq!(value.get("b"), None);
        assert_eq!(value.get("c").and_then(Value::as_text), Some("x"));
        assert_eq!(value.get("d").and_then(Value::as_bool), Some(true));
        assert_eq!(value.get("e").and_then(Value::as_list).map(<[_]>::len), Some(1));
        assert_eq!(value.get("c").and_then(Value::as_number::<u32>), None);
        assert_eq!(Value::Number(-1).as_number::<u64>(), None);
    }
}
