//! Asks one registry for one repository over HTTP: attempts, tokens, redirects (OCI distribution specification 1.1; RFC 9110; tokens
//! as in distribution.github.io, Token Authentication).
//!
//! What opens the registry's door is shown to the registry alone: not to whom it sends us on to, not where it says that an upload goes.

use std::io::{self, Read};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Request, Response, StatusCode, header};
use ureq::{Agent, Body, SendBody};

use super::address;
use super::asked::{Asked, Content};
use super::auth::{Challenge, Credentials, TOKEN_USER, Token};
use super::tls;
use crate::image::Error;
use crate::sys::lock;

/// The largest answer that is read of an error or a token server.
const MAX_ANSWER: u64 = 64 << 10;

/// How often we let a registry send us on.
const MOST_REDIRECTS: u32 = 5;

/// How often something that may pass is tried again, and how long before the first time; it doubles.
pub(super) const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// The longest that a registry may tell us to wait.
const LONGEST_PAUSE: u64 = 30;

const NOBODY_TRUSTED: &str = "cannot be trusted, for no certificates of authorities are on this host: install ca-certificates, or set SSL_CERT_FILE";

/// How a registry is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// For whom.
    pub credentials: Option<Credentials>,
    /// Without TLS.
    pub plain_http: bool,
    /// Certificates of the authorities that are trusted, in PEM.
    pub authorities: Vec<u8>,
}

/// A repository in a registry.
pub struct Client {
    agent: Agent,
    pub(super) host: String,
    base: String,
    pub(super) repository: String,
    credentials: Option<Credentials>,
    plain_http: bool,
    /// The value of the header that opens the door.
    authorization: Mutex<Option<String>>,
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

/// An answer that asks us to come again later.
#[derive(Debug, thiserror::Error)]
#[error("it answers {status}")]
struct Later {
    status: StatusCode,
    after: Option<u64>,
}

impl Client {
    /// The repository `repository` of the registry `host`. A registry on this machine may do without TLS, as for Docker.
    ///
    /// # Errors
    /// When no certificate can be checked.
    pub fn new(host: &str, repository: &str, access: &Access) -> Result<Self, Error> {
        // Docker's name for its registry is not the one that answers, and one word there is one of its own images.
        let (address, repository) = match host {
            "docker.io" | "index.docker.io" if repository.contains('/') => {
                ("registry-1.docker.io", repository.into())
            }
            "docker.io" | "index.docker.io" => ("registry-1.docker.io", format!("library/{repository}")),
            host => (host, repository.to_string()),
        };
        let near = address::is_loopback(address);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(120)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .timeout_per_write(Some(Duration::from_secs(60)))
            .user_agent(concat!("rvmm/", env!("CARGO_PKG_VERSION")));
        if near {
            config = config.proxy(None);
        }
        let agent: Agent = config.tls_config(tls::config(&access.authorities)).build().into();
        let plain = access.plain_http || near && !tls::is_spoken(&agent, address);
        if !plain && access.authorities.is_empty() {
            return Err(Error::Registry { registry: host.into(), reason: NOBODY_TRUSTED.into() });
        }
        let scheme = if plain { "http" } else { "https" };
        Ok(Client {
            agent,
            host: host.into(),
            base: format!("{scheme}://{address}"),
            repository,
            credentials: access.credentials.clone(),
            plain_http: access.plain_http,
            authorization: Mutex::new(None),
        })
    }

    /// Something below the repository.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository)
    }

    /// Looks whether there is a registry that lets us in.
    ///
    /// # Errors
    /// When there is none, or it does not.
    pub fn check(&self) -> Result<(), Error> {
        let url = format!("{}/v2/", self.base);
        let answer = self.patiently(|| self.ask(&Asked::new(Method::GET, &url)))?;
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => Err(self.refused("is none: it does not know the path /v2/")),
            _ => Err(self.refusal("let us in", answer)),
        }
    }

    /// Tries again what may pass.
    pub(super) fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let mut failed = 0;
        loop {
            match attempt() {
                Err(error) if error.is_passing() && failed < ATTEMPTS - 1 => {
                    self.wait(failed, &error);
                    failed += 1;
                }
                other => return other,
            }
        }
    }

    /// Waits before something is tried again.
    pub(super) fn wait(&self, failed: u32, error: &Error) {
        log::info!("{}: {error:?}: trying again", self.host);
        let asked = match error {
            Error::Connection { source, .. } => source.downcast_ref::<Later>().and_then(|later| later.after),
            _ => None,
        };
        let asked = asked.map(|seconds| Duration::from_secs(seconds.min(LONGEST_PAUSE)));
        std::thread::sleep(asked.unwrap_or(PAUSE * (1 << failed.min(6))));
    }

    /// Asks; goes where it is sent, and shows who we are when that is wanted.
    pub(super) fn ask(&self, asked: &Asked) -> Result<Response<Body>, Error> {
        let mut url = asked.url.to_string();
        let (mut redirects, mut shown) = (0, false);
        loop {
            let own = address::origin(&url) == self.base;
            let answer = self.send(asked, &url, own)?;
            let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && own && !shown {
                let value = self.authorize(text(header::WWW_AUTHENTICATE).unwrap_or_default())?;
                *lock(&self.authorization) = Some(value);
                shown = true;
                continue;
            }
            let Some(location) = text(header::LOCATION).filter(|_| status.is_redirection()) else {
                return Ok(answer);
            };
            redirects += 1;
            if redirects > MOST_REDIRECTS {
                return Err(self.refused("sends us from one place to the next without end"));
            }
            let next = address::resolve(&url, location);
            if self.is_unsafe(&next) {
                let next = plain_text(address::origin(&next));
                return Err(self.refused(format!("sends us on to `{next}`, which is not safe")));
            }
            url = next;
        }
    }

    /// Whether an address that the registry names would take us out of TLS, or away from this machine without it.
    fn is_unsafe(&self, url: &str) -> bool {
        let near = address::is_loopback(address::host(url));
        let plain = url.starts_with("http://") && self.base.starts_with("http://");
        !(url.starts_with("https://") || plain && (near || self.plain_http))
    }

    fn send(&self, asked: &Asked, url: &str, own: bool) -> Result<Response<Body>, Error> {
        let mut request = Request::builder().method(&asked.method).uri(url);
        for (name, value) in asked.headers {
            request = request.header(*name, *value);
        }
        let authorization = lock(&self.authorization).clone();
        if let Some(value) = authorization.filter(|_| own) {
            request = request.header(header::AUTHORIZATION, value);
        }
        let invalid = |_| Error::invalid(format!("Address `{}`", plain_text(url)), "it is none");
        let answer = match &asked.content {
            Content::Nothing if matches!(asked.method, Method::GET | Method::HEAD) => {
                self.agent.run(request.body(()).map_err(invalid)?)
            }
            Content::Nothing => self.agent.run(request.body(&b""[..]).map_err(invalid)?),
            Content::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(invalid)?),
            Content::Part(part) => {
                let mut part = part.clone();
                let request = request.header(header::CONTENT_LENGTH, part.end - part.start);
                self.agent.run(request.body(SendBody::from_reader(&mut part)).map_err(invalid)?)
            }
        };
        answer.map_err(|error| self.failed(error))
    }

    /// What answers a challenge.
    fn authorize(&self, challenge: &str) -> Result<String, Error> {
        let login = format!("`rvmm login {}`", self.host);
        match Challenge::parse(challenge) {
            Some(Challenge::Basic) => match &self.credentials {
                Some(known) => Ok(known.basic()),
                None => Err(self.refused(format!("asks for a user and password: {login}"))),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.token(&realm, service.as_deref(), scope.as_deref())
            }
            None => Err(self.refused("asks for an authorisation of an unknown kind")),
        }
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Error> {
        if self.is_unsafe(realm) {
            let realm = plain_text(realm);
            return Err(self.refused(format!("sends us for a token to `{realm}`, which is not safe")));
        }
        let own = format!("repository:{}:pull,push", self.repository);
        let scope = match scope {
            None if !self.repository.is_empty() => Some(own.as_str()),
            other => other,
        };
        let fields = [("service", service), ("scope", scope)];
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let answer = match &self.credentials {
            Some(known) if known.user == TOKEN_USER => {
                let form = [("grant_type", "refresh_token"), ("client_id", "rvmm")];
                let form = form.into_iter().chain([("refresh_token", known.password.as_str())]);
                self.agent.post(realm).send_form(form.chain(fields))
            }
            known => {
                let url = fields
                    .fold(realm.to_string(), |url, (name, value)| address::with_parameter(&url, name, value));
                let mut request = self.agent.get(url);
                if let Some(known) = known {
                    request = request.header(header::AUTHORIZATION, known.basic());
                }
                request.call()
            }
        };
        let answer = answer.map_err(|error| self.failed(error))?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let known = if self.credentials.is_some() { "does not accept the" } else { "asks for a" };
                let login = format!("`rvmm login {}`", self.host);
                return Err(self.refused(format!("{known} user and password: {login}")));
            }
            _ => return Err(self.refusal("give a token", answer)),
        }
        let bytes = self.small(answer, MAX_ANSWER)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Form { what: format!("A token of registry {}", self.host), source })?;
        token.bearer().ok_or_else(|| self.refused("gives a token that is none"))
    }

    /// An answer of at most `limit` bytes.
    pub(super) fn small(&self, answer: Response<Body>, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut content = answer.into_body().into_reader().take(limit + 1);
        content.read_to_end(&mut bytes).map_err(|source| self.broken(source))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: format!("An answer of registry {}", self.host), limit });
        }
        Ok(bytes)
    }

    /// A registry that says no.
    pub(super) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Registry { registry: self.host.clone(), reason: reason.into() }
    }

    /// A connection that broke in the middle.
    pub(super) fn broken(&self, source: io::Error) -> Error {
        Error::Connection { registry: self.host.clone(), source: Box::new(source), passing: true }
    }

    /// A request without an answer.
    fn failed(&self, error: ureq::Error) -> Error {
        let passing = match &error {
            ureq::Error::Io(source) => {
                // Nobody is there, or it is nobody whom we trust: that does not change in a second.
                let fixed =
                    matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidData);
                !fixed && !is_unknown_host(source)
            }
            ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
            _ => false,
        };
        let source: Box<dyn std::error::Error + Send + Sync> = match error {
            ureq::Error::HostNotFound => NO_HOST.into(),
            ureq::Error::Io(source) if is_unknown_host(&source) => NO_HOST.into(),
            ureq::Error::Io(source) => source.into(),
            other => other.into(),
        };
        Error::Connection { registry: self.host.clone(), source, passing }
    }

    /// The error that an answer is, in the registry's words.
    pub(super) fn refusal(&self, doing: &str, answer: Response<Body>) -> Error {
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|seconds| seconds.trim().parse().ok());
            let source = Box::new(Later { status, after });
            return Error::Connection { registry: self.host.clone(), source, passing: true };
        }
        let said = self.small(answer, MAX_ANSWER).unwrap_or_default();
        let said = serde_json::from_slice::<Refusal>(&said).ok();
        let said = said.and_then(|refusal| refusal.errors.into_iter().next());
        let said = said.map(|reason| format!(": {} {}", reason.code, reason.message)).unwrap_or_default();
        let hint = match (status, &self.credentials) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(known)) => {
                format!("; you are `{}`", known.user)
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => {
                format!("; `rvmm login {}` tells it who you are", self.host)
            }
            _ => String::new(),
        };
        let place = match self.repository.as_str() {
            "" => String::new(),
            repository => format!(" in `{repository}`"),
        };
        self.refused(format!("refuses to {doing}{place} ({status}{}){hint}", plain_text(&said)))
    }
}

const NO_HOST: &str = "there is no host of this name";

/// The standard library gives getaddrinfo's EAI_NONAME no kind of its own.
fn is_unknown_host(error: &io::Error) -> bool {
    error.to_string().contains("Name or service not known")
}

/// What comes from outside and goes to a terminal.
pub(super) fn plain_text(text: &str) -> String {
    text.trim_end().chars().filter(|c| !c.is_control()).take(200).collect()
}
