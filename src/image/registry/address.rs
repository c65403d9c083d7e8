//! Addresses in the web, as far as registries use them (RFC 3986).

/// Whether a host, perhaps with a port, is this machine itself.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Scheme and host of an address: `https://a:5000`.
pub fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// The host of an address, with its port if it says one; what stands before an `@` is no host.
pub fn host(url: &str) -> &str {
    let origin = origin(url);
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// What `location` means to somebody who got it from `base`.
pub fn resolve(base: &str, location: &str) -> String {
    if location.contains("://") && !location.starts_with(['/', '?']) {
        return location.into();
    }
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or_default();
    let start = origin(base).len();
    match path[start..].rfind('/') {
        Some(slash) => format!("{}/{location}", &path[..start + slash]),
        None => format!("{path}/{location}"),
    }
}

/// Adds a parameter to an address.
pub fn with_parameter(url: &str, name: &str, value: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    let value: String = value
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    format!("{url}{joint}{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.8.8:1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.org", "10.0.0.1", "127.0.0.1.example.org:5000", "[::2]", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn locations() {
        for (base, location, meant) in [
            ("https://a:1/v2/x?y", "/z?_state=/", "https://a:1/z?_state=/"),
            ("https://a/v2/x?y=/", "b", "https://a/v2/b"),
            ("https://a", "b", "https://a/b"),
            ("https://a/v2/", "http://b/c", "http://b/c"),
            ("http://a/v2/", "//b/c", "http://b/c"),
            ("https://a/v2/", "/x?to=http://b", "https://a/x?to=http://b"),
        ] {
            assert_eq!(resolve(base, location), meant);
        }
        assert_eq!(origin("https://a:1/b?c"), "https://a:1");
        assert_eq!(origin("https://a?c"), "https://a");
        assert_eq!(host("https://127.0.0.1:5000@evil/b"), "evil");
        assert_eq!(with_parameter("a?b", "c", "x y/z+"), "a?b&c=x%20y/z%2B");
    }
}
