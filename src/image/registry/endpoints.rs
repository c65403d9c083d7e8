//! What can be asked of a repository: manifests, blobs, uploads (OCI distribution specification 1.1, Endpoints).

use std::io::Read;

use serde::Deserialize;
use ureq::Body;
use ureq::http::{Method, Response, StatusCode, header};

use super::address;
use super::asked::{Asked, Content, Part};
use super::client::Client;
use crate::image::{Digest, Error};
use crate::options::nearest;

/// The largest manifest (the specification asks for 4 MiB) and the largest list of tags that is looked at.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_TAGS: u64 = 1 << 20;

const BYTES: (&str, &str) = ("Content-Type", "application/octet-stream");

/// An upload that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Where the next piece goes.
    pub url: String,
    /// How much the registry has.
    pub have: u64,
    /// The smallest piece that the registry takes, but for the last one.
    pub smallest: u64,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

fn text(answer: &Response<Body>, name: impl header::AsHeaderName) -> Option<&str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

impl Client {
    /// The manifest of a tag or digest, and its type.
    pub(super) fn manifest(&self, tag: &str, types: &[&str]) -> Result<(String, Vec<u8>), Error> {
        let url = self.path(&format!("manifests/{tag}"));
        let headers = [("Accept", &*types.join(", "))];
        let answer = self.ask(&Asked { headers: &headers, ..Asked::new(Method::GET, &url) })?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(self.unknown(tag)),
            _ => return Err(self.refusal(&format!("give manifest `{tag}`"), answer)),
        }
        let media_type = text(&answer, header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_string();
        Ok((media_type, self.small(answer, MAX_MANIFEST)?))
    }

    /// What to say of a tag that is not there: what else is.
    fn unknown(&self, tag: &str) -> Error {
        let repository = &self.repository;
        let url = self.path("tags/list?n=1000");
        let list = || -> Result<Option<Vec<String>>, Error> {
            let answer = self.ask(&Asked::new(Method::GET, &url))?;
            if answer.status() != StatusCode::OK {
                return Ok(None);
            }
            Ok(serde_json::from_slice::<Tags>(&self.small(answer, MAX_TAGS)?).ok().and_then(|list| list.tags))
        };
        let tags: Vec<String> = list().ok().flatten().unwrap_or_default();
        // What comes from outside goes to a terminal.
        let tags: Vec<&str> = tags.iter().map(String::as_str).filter(|tag| is_tag(tag)).collect();
        match nearest(tag, &tags) {
            Some(near) => {
                self.refused(format!("has no tag `{tag}` in `{repository}`, did you mean `{near}`?"))
            }
            None => self.refused(format!("has no repository `{repository}`, or no image in it")),
        }
    }

    /// Puts a manifest under a tag.
    pub(super) fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<(), Error> {
        let url = self.path(&format!("manifests/{tag}"));
        let content = Content::Bytes(bytes);
        let asked =
            Asked { method: Method::PUT, url: &url, headers: &[("Content-Type", media_type)], content };
        let answer = self.ask(&asked)?;
        match answer.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refusal(&format!("take manifest `{tag}`"), answer)),
        }
    }

    /// Whether the registry has a blob.
    pub(super) fn has(&self, digest: &Digest) -> Result<bool, Error> {
        let answer = self.ask(&Asked::new(Method::HEAD, &self.path(&format!("blobs/{digest}"))))?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal("say what it has", answer)),
        }
    }

    /// A blob from `offset` on, or from its start when the registry knows no ranges.
    pub(super) fn blob(&self, digest: &Digest, offset: u64) -> Result<(u64, Box<dyn Read>), Error> {
        let range = format!("bytes={offset}-");
        let headers = [("Range", range.as_str())];
        let headers = if offset > 0 { &headers[..] } else { &[] };
        let url = self.path(&format!("blobs/{digest}"));
        let answer = self.ask(&Asked { headers, ..Asked::new(Method::GET, &url) })?;
        let start = match answer.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => match text(&answer, header::CONTENT_RANGE).and_then(first_byte) {
                Some(start) if start == offset => offset,
                _ => return Err(self.refused(format!("gives another part of blob {digest} than was asked"))),
            },
            StatusCode::NOT_FOUND => {
                return Err(self.refused(format!("has lost blob {digest} of `{}`", self.repository)));
            }
            _ => return Err(self.refusal(&format!("give blob {digest}"), answer)),
        };
        Ok((start, Box::new(answer.into_body().into_reader())))
    }

    /// Begins an upload. With `from`, another repository of this registry that has the blob, nothing may be left to send: `None`.
    pub(super) fn begin(&self, digest: &Digest, from: Option<&str>) -> Result<Option<Session>, Error> {
        let url = self.path("blobs/uploads/");
        let url = match from {
            Some(from) => {
                let url = address::with_parameter(&url, "mount", &digest.to_string());
                address::with_parameter(&url, "from", from)
            }
            None => url,
        };
        let answer = self.ask(&Asked::new(Method::POST, &url))?;
        match answer.status() {
            StatusCode::CREATED if from.is_some() => Ok(None),
            StatusCode::ACCEPTED => self.session(&url, &answer, 0).map(Some),
            _ => Err(self.refusal("take a blob", answer)),
        }
    }

    /// Where an upload stands.
    pub(super) fn stand(&self, session: &Session) -> Result<Session, Error> {
        let answer = self.ask(&Asked::new(Method::GET, &session.url))?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::ACCEPTED | StatusCode::OK => {
                let have = text(&answer, header::RANGE).map_or(0, after_range);
                let location = text(&answer, header::LOCATION);
                let url =
                    location.map_or(session.url.clone(), |location| address::resolve(&session.url, location));
                Ok(Session { url, have, ..session.clone() })
            }
            _ => Err(self.refusal("go on with an upload", answer)),
        }
    }

    /// Sends a piece that begins where the upload stands.
    pub(super) fn piece(&self, session: &Session, piece: Part) -> Result<Session, Error> {
        let end = piece.end;
        let range = format!("{}-{}", piece.start, end - 1);
        let headers = [BYTES, ("Content-Range", range.as_str())];
        let content = Content::Part(piece);
        let asked = Asked { method: Method::PATCH, url: &session.url, headers: &headers, content };
        let answer = self.ask(&asked)?;
        match answer.status() {
            StatusCode::ACCEPTED => {
                let have = text(&answer, header::RANGE).map_or(end, after_range);
                if have != end {
                    let reason = format!("took {have} bytes of a blob where {end} were sent");
                    return Err(self.refused(reason));
                }
                self.session(&session.url, &answer, end)
            }
            _ => Err(self.refusal("take a piece of a blob", answer)),
        }
    }

    /// Ends an upload, with the rest of the blob.
    pub(super) fn end(&self, session: &Session, digest: &Digest, rest: Part) -> Result<(), Error> {
        let url = address::with_parameter(&session.url, "digest", &digest.to_string());
        let content = if rest.start < rest.end { Content::Part(rest) } else { Content::Nothing };
        let answer = self.ask(&Asked { method: Method::PUT, url: &url, headers: &[BYTES], content })?;
        match answer.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refusal("take a blob", answer)),
        }
    }

    fn session(&self, url: &str, answer: &Response<Body>, have: u64) -> Result<Session, Error> {
        let location = text(answer, header::LOCATION)
            .ok_or_else(|| self.refused("takes a blob and does not say where"))?;
        let smallest = text(answer, "oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Session { url: address::resolve(url, location), have, smallest })
    }
}

/// How many bytes `0-99` are. Registries write `0-0` for none, too: one byte is sent again rather than missed.
fn after_range(range: &str) -> u64 {
    let end = range.trim().trim_start_matches("bytes=").split_once('-').and_then(|(_, end)| end.parse().ok());
    end.map_or(0, |end: u64| if end == 0 { 0 } else { end.saturating_add(1) })
}

/// The first byte of `bytes 10-99/100`.
fn first_byte(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, have) in [("0-99", 100), ("0-0", 0), ("bytes=0-9", 10), ("", 0), ("x", 0)] {
            assert_eq!(after_range(range), have, "{range}");
        }
        assert_eq!(after_range(&format!("0-{}", u64::MAX)), u64::MAX);
        assert_eq!(first_byte("bytes 10-99/100"), Some(10));
        assert_eq!(first_byte("10-99"), None);
    }
}
