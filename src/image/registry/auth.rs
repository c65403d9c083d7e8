//! Who asks: passwords, challenges and what answers them (RFC 7235; RFC 6750, section 3; RFC 4648, section 4).

use std::fmt;

use serde::Deserialize;

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user; `<token>` where the password is a token that an identity server takes (Docker's word).
    pub user: String,
    /// The password.
    pub password: String,
}

/// The user that Docker writes for a token of an identity server.
pub const TOKEN_USER: &str = "<token>";

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password is for nobody's log.
        write!(f, "{}:***", self.user)
    }
}

impl Credentials {
    /// From `USER:PASSWORD` in base64, as Docker keeps them.
    pub fn from_base64(text: &str) -> Option<Self> {
        let text = String::from_utf8(decode(text.trim())?).ok()?;
        let (user, password) = text.split_once(':')?;
        let password = password.trim_end_matches('\0');
        Some(Credentials { user: user.into(), password: password.into() })
    }

    /// `USER:PASSWORD` in base64.
    pub fn to_base64(&self) -> String {
        encode(format!("{}:{}", self.user, self.password).as_bytes())
    }

    /// The value of the header that says it.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", self.to_base64())
    }
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user and a password with each request.
    Basic,
    /// A token, which the server at `realm` gives.
    Bearer {
        /// Where.
        realm: String,
        /// For which registry.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the value of WWW-Authenticate.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let field = |name: &str| parameter(rest, name);
        let realm = field("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        Some(Challenge::Bearer { realm, service: field("service"), scope: field("scope") })
    }
}

/// The answer of a token server: it names the token in one way or the other, or in both.
#[derive(Deserialize)]
pub struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Token {
    /// The value of the header that shows it.
    pub fn bearer(self) -> Option<String> {
        self.token.or(self.access_token).map(|token| format!("Bearer {token}"))
    }
}

/// One parameter of a challenge: `name="value"`, in any order, with commas inside of values.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let mut rest = challenge.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.into());
        }
        rest = next.trim_start_matches([',', ' ']);
    }
    None
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let chunk = |chunk: &[u8]| {
        let word = (0..3).fold(0u32, |word, at| word << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        (0..4)
            .map(move |at| word >> (18 - 6 * at) & 63)
            .enumerate()
            .map(|(at, six)| if at > chunk.len() { '=' } else { char::from(DIGITS[six as usize]) })
            .collect::<String>()
    };
    bytes.chunks(3).map(chunk).collect()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.chunks(4) {
        let mut word = 0u32;
        for at in 0..4 {
            let six = match chunk.get(at) {
                Some(digit) => DIGITS.iter().position(|known| known == digit)?,
                None => 0,
            };
            word = word << 6 | six as u32;
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(text.as_bytes()), encoded);
            assert_eq!(decode(encoded).unwrap(), text.as_bytes());
        }
        for bad in ["Z", "Zm9vY", "Zm 9", "Zg=v", "ü"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        let known = Credentials { user: "a".into(), password: "b:c".into() };
        assert_eq!(Credentials::from_base64(&known.to_base64()).unwrap(), known);
        assert_eq!(format!("{known:?}"), "a:***");
    }

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://a/token",service="r", scope="repository:a:pull,push",x=y"#;
        let asked = Challenge::Bearer {
            realm: "https://a/token".into(),
            service: Some("r".into()),
            scope: Some("repository:a:pull,push".into()),
        };
        assert_eq!(Challenge::parse(text).unwrap(), asked);
        assert_eq!(Challenge::parse("basic realm=\"x\"").unwrap(), Challenge::Basic);
        for bad in ["", "Bearer", "Negotiate abc", r#"Bearer realm="cut"#, "Bearer service=\"r\""] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
        assert_eq!(parameter("a=b,x=y", "X").unwrap(), "y");
    }

    #[test]
    fn tokens_have_two_names() {
        let token = |text: &str| serde_json::from_str::<Token>(text).unwrap().bearer();
        assert_eq!(token(r#"{"token":"a","access_token":"a"}"#).unwrap(), "Bearer a");
        assert_eq!(token(r#"{"access_token":"b"}"#).unwrap(), "Bearer b");
        assert_eq!(token("{}"), None);
    }
}
