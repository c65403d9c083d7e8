//! Requests that can be sent again: to where we are sent on, with a password, after a connection broke.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use ureq::http::Method;

/// What is asked.
pub struct Asked<'a> {
    /// How.
    pub method: Method,
    /// Of whom.
    pub url: &'a str,
    /// With which headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// With what.
    pub content: Content<'a>,
}

/// What is sent; it can be sent again.
pub enum Content<'a> {
    /// No body, or an empty one where the method wants one.
    Nothing,
    /// A document.
    Bytes(&'a [u8]),
    /// A blob, or a piece of one.
    Part(Part<'a>),
}

/// A part of a file.
#[derive(Clone)]
pub struct Part<'a> {
    /// The file.
    pub file: &'a File,
    /// From which byte.
    pub start: u64,
    /// Up to which byte, which is not in it.
    pub end: u64,
    /// Told how far the file was read.
    pub progress: &'a dyn Fn(u64),
}

impl Read for Part<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(usize::try_from(self.end - self.start).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut to[..most], self.start)?;
        self.start += count as u64;
        (self.progress)(self.start);
        Ok(count)
    }
}

impl<'a> Asked<'a> {
    /// Something without headers and content.
    pub fn new(method: Method, url: &'a str) -> Self {
        Asked { method, url, headers: &[], content: Content::Nothing }
    }
}
