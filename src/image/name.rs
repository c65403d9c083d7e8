//! Names of images: `[REGISTRY/]REPO[:TAG]` (OCI distribution specification 1.1, Pulling manifests: name and tag).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::Error;

/// The tag of a name that has none.
const LATEST: &str = "latest";

/// The longest repository name and tag.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// A name of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Perhaps a registry, then lowercase words between slashes.
    pub repository: String,
    /// What comes after the colon.
    pub tag: String,
}

impl Name {
    /// The registry that the name begins with, and the rest: a first word with a dot or colon, or `localhost`.
    pub fn registry(&self) -> Option<(&str, &str)> {
        let (first, rest) = self.repository.split_once('/')?;
        (first.contains(['.', ':']) || first == "localhost").then_some((first, rest))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // A colon before the last slash belongs to a port.
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, LATEST),
        };
        let name = Name { repository: repository.into(), tag: tag.into() };
        let bad = |reason| Err(Error::BadName { name: text.into(), reason });
        let path = match name.registry() {
            Some((host, _)) if !is_host(host) => return bad("its registry is not a host name"),
            Some((_, path)) => path,
            None => repository,
        };
        if repository.len() > LONGEST_REPOSITORY || !path.split('/').all(is_word) {
            return bad(
                "a repository is lowercase letters and digits, with . _ - within and / between words",
            );
        }
        let tail = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
        if tag.len() > LONGEST_TAG
            || !tag.bytes().all(tail)
            || !tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        {
            return bad("a tag is up to 128 letters, digits, _ . and -, and does not begin with . or -");
        }
        Ok(name)
    }
}

fn is_word(word: &str) -> bool {
    let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = word.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|c| plain(c) || b"._-".contains(c))
        && !word.contains("..")
}

fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').unwrap_or_default();
        let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
        return address.parse::<Ipv6Addr>().is_ok() && port;
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "1"));
    name.split('.').all(|label| !label.is_empty())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b".-".contains(&c))
        && is_port(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_names() {
        for (text, registry, full) in [
            ("alpine", None, "alpine:latest"),
            ("team/web:v1.2", None, "team/web:v1.2"),
            ("localhost/a:b", Some("localhost"), "localhost/a:b"),
            ("127.0.0.1:5000/a/b-c", Some("127.0.0.1:5000"), "127.0.0.1:5000/a/b-c:latest"),
            ("[::1]:5000/a:b", Some("[::1]:5000"), "[::1]:5000/a:b"),
            ("[fd00::2]/a", Some("[fd00::2]"), "[fd00::2]/a:latest"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(name.registry().map(|(host, _)| host), registry);
        }
    }

    #[test]
    fn refuses_hosts_that_are_none() {
        for bad in
            ["a.b:+80/c", "a.b:/c", "a.b:65536/c", "[::1/c", "[::1]80/c", "[::1]:+8/c", "[x:y]/c", "[]/c"]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_others() {
        let long = "a".repeat(300);
        for bad in
            ["", ":", "a:", "A", "a//b", "/a", "a/", "../a", "a..b", "a:.b", "a b", "x.y:z/a", "a@b", &long]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
