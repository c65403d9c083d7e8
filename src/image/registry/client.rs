//! One repository of one registry, over HTTP (OCI distribution specification 1.1; tokens as in distribution.github.io, Token Authentication).

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response, StatusCode, header};
use ureq::{Agent, Body, SendBody};

use crate::image::{Digest, Error};

/// The largest manifest (the specification asks for 4 MiB) and the largest answer that is read of an error.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_ERROR: u64 = 64 << 10;

/// A user and a password or token.
#[derive(Clone)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

/// A repository in a registry.
pub struct Client {
    agent: Agent,
    host: String,
    base: String,
    repository: String,
    credentials: Option<Credentials>,
    /// The value of the header that opens the door.
    authorization: Mutex<Option<String>>,
}

/// The answer of a token server.
#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

/// The answer of a registry that refuses.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Client {
    /// The repository `repository` of the registry `host`. A registry on this machine is spoken to without TLS.
    pub fn new(host: &str, repository: &str, credentials: Option<Credentials>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("rvmm/", env!("CARGO_PKG_VERSION")))
            .build();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let scheme = if matches!(name, "localhost" | "127.0.0.1" | "[::1]") { "http" } else { "https" };
        Client {
            agent: config.into(),
            host: host.into(),
            base: format!("{scheme}://{host}"),
            repository: repository.into(),
            credentials,
            authorization: Mutex::new(None),
        }
    }

    /// A connection that broke in the middle.
    pub(super) fn broken(&self, source: io::Error) -> Error {
        Error::Connection { registry: self.host.clone(), source: Box::new(source) }
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository)
    }

    /// Asks, once more with a token when the registry wants one.
    fn ask(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        mut body: Option<(&mut dyn Read, u64)>,
    ) -> Result<Response<Body>, Error> {
        for last in [false, true] {
            let mut request = Request::builder().method(method).uri(url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // What opens this door is for nobody else.
            if let Some(value) = authorization.filter(|_| url.starts_with(&format!("{}/", self.base))) {
                request = request.header(header::AUTHORIZATION, value);
            }
            // A body can be sent once: its door was opened by the request before.
            let has_body = body.is_some();
            let invalid = |_| Error::invalid(format!("Address `{url}`"), "it is none");
            let answer = match body.take() {
                Some((content, size)) => {
                    let request = request.header(header::CONTENT_LENGTH, size);
                    self.agent.run(request.body(SendBody::from_reader(content)).map_err(invalid)?)
                }
                None => self.agent.run(request.body(()).map_err(invalid)?),
            };
            let answer = answer.map_err(|source| Error::Connection {
                registry: self.host.clone(),
                source: Box::new(source),
            })?;
            if answer.status() != StatusCode::UNAUTHORIZED || last || has_body {
                return Ok(answer);
            }
            let challenge =
                answer.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            let value = self.authorize(challenge.unwrap_or_default())?;
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }
        Err(self.refused("asks for a password again and again"))
    }

    fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Registry { registry: self.host.clone(), reason: reason.into() }
    }

    /// What answers a challenge.
    fn authorize(&self, challenge: &str) -> Result<String, Error> {
        let basic = self.credentials.as_ref().map(|known| {
            format!("Basic {}", base64(format!("{}:{}", known.user, known.password).as_bytes()))
        });
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or_else(|| self.refused("asks for a user and password: log in first"));
        }
        let field = |name: &str| parameter(rest, name);
        let Some(realm) = field("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(self.refused("asks for an authorisation of an unknown kind"));
        };
        // A password must not go in the clear where the registry itself is spoken to with TLS.
        if !realm.starts_with("https://") && self.base.starts_with("https://") {
            return Err(self.refused(format!("sends us for a token to `{realm}`, which is not safe")));
        }
        let scope = field("scope").unwrap_or(format!("repository:{}:pull,push", self.repository));
        let mut request = self.agent.get(&realm).query("scope", scope);
        if let Some(service) = field("service") {
            request = request.query("service", service);
        }
        if let Some(basic) = basic {
            request = request.header("Authorization", basic);
        }
        let answer = request
            .call()
            .map_err(|source| Error::Connection { registry: self.host.clone(), source: Box::new(source) })?;
        if !answer.status().is_success() {
            return Err(self.refused(format!(
                "gives no token for `{}` ({})",
                self.repository,
                answer.status()
            )));
        }
        let bytes = self.small(answer, MAX_ERROR)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Form { what: format!("A token of registry {}", self.host), source })?;
        Ok(format!("Bearer {}", token.token))
    }

    /// An answer of at most `limit` bytes.
    fn small(&self, answer: Response<Body>, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut content = answer.into_body().into_reader().take(limit + 1);
        content.read_to_end(&mut bytes).map_err(|source| self.broken(source))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: format!("An answer of registry {}", self.host), limit });
        }
        Ok(bytes)
    }

    /// The error that an answer is, in the registry's words.
    fn refusal(&self, doing: &str, answer: Response<Body>) -> Error {
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let source = io::Error::other(format!("it answers {status}"));
            return Error::Connection { registry: self.host.clone(), source: source.into() };
        }
        let said = self.small(answer, MAX_ERROR).unwrap_or_default();
        let said = serde_json::from_slice::<Refusal>(&said)
            .ok()
            .and_then(|refusal| refusal.errors.into_iter().next());
        let said = said.map(|reason| format!(": {} {}", reason.code, reason.message)).unwrap_or_default();
        // What comes from outside goes to a terminal.
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        self.refused(format!("refuses to {doing} in `{}` ({status}{said})", self.repository))
    }

    /// The manifest of a tag or digest, and its type.
    pub(super) fn manifest(&self, tag: &str, types: &[&str]) -> Result<(String, Vec<u8>), Error> {
        let url = self.path(&format!("manifests/{tag}"));
        let answer = self.ask(&Method::GET, &url, &[("Accept", &types.join(", "))], None)?;
        if !answer.status().is_success() {
            return Err(self.refusal(&format!("give manifest `{tag}`"), answer));
        }
        let media_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type =
            media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_string();
        Ok((media_type, self.small(answer, MAX_MANIFEST)?))
    }

    /// Puts a manifest under a tag.
    pub(super) fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<(), Error> {
        let url = self.path(&format!("manifests/{tag}"));
        let size = bytes.len() as u64;
        let answer =
            self.ask(&Method::PUT, &url, &[("Content-Type", media_type)], Some((&mut &*bytes, size)))?;
        match answer.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refusal(&format!("take manifest `{tag}`"), answer)),
        }
    }

    /// Whether the registry has a blob.
    pub(super) fn has(&self, digest: &Digest) -> Result<bool, Error> {
        let answer = self.ask(&Method::HEAD, &self.path(&format!("blobs/{digest}")), &[], None)?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal("say what it has", answer)),
        }
    }

    /// A blob from `offset` on, or from the place that the registry chose instead.
    pub(super) fn blob(&self, digest: &Digest, offset: u64) -> Result<(u64, Box<dyn Read>), Error> {
        let range = format!("bytes={offset}-");
        let headers = [("Range", range.as_str())];
        let headers = if offset > 0 { &headers[..] } else { &[] };
        let answer = self.ask(&Method::GET, &self.path(&format!("blobs/{digest}")), headers, None)?;
        let start = match answer.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => offset,
            _ => return Err(self.refusal(&format!("give blob {digest}"), answer)),
        };
        Ok((start, Box::new(answer.into_body().into_reader())))
    }

    /// Sends a blob.
    pub(super) fn upload(&self, digest: &Digest, size: u64, content: &mut dyn Read) -> Result<(), Error> {
        let url = self.path("blobs/uploads/");
        let answer = self.ask(&Method::POST, &url, &[("Content-Length", "0")], None)?;
        let place =
            answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(String::from);
        let Some(place) = place.filter(|_| answer.status() == StatusCode::ACCEPTED) else {
            return Err(self.refusal("take a blob", answer));
        };
        let place = if place.starts_with('/') { format!("{}{place}", self.base) } else { place };
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{joint}digest={digest}");
        let headers = [("Content-Type", "application/octet-stream")];
        let answer = self.ask(&Method::PUT, &url, &headers, Some((content, size)))?;
        match answer.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refusal("take a blob", answer)),
        }
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

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
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

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn challenges() {
        let text = r#"realm="https://a/token",service="r", scope="repository:a:pull,push",x=y"#;
        assert_eq!(parameter(text, "realm").unwrap(), "https://a/token");
        assert_eq!(parameter(text, "scope").unwrap(), "repository:a:pull,push");
        assert_eq!(parameter(text, "X").unwrap(), "y");
        assert_eq!(parameter(text, "nothing"), None);
        assert_eq!(parameter(r#"realm="cut"#, "realm"), None);
    }
}
