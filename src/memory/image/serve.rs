//! Where the pages of images are read from: files, or another process through a Unix socket.
//!
//! ```text
//!   client   layer (4; 0 is the top)   pages (4; at most 512)   first page (8)     little-endian
//!   server   the pages, or it closes the connection
//! ```
//!
//! The client has the indices and compares what it gets with the digests in them: the server need not be trusted.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::index::CHUNK_PAGES;
use super::{Chain, Error, file};
use crate::sys::frozen::PAGE;
use crate::sys::socket;

/// How long the other side may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
const QUESTION: usize = 16;

/// Where pages come from.
pub enum Source {
    /// The files of the images.
    Files,
    /// A server at this path.
    Socket {
        /// The connection.
        stream: UnixStream,
        /// Its path.
        path: PathBuf,
    },
}

impl Source {
    /// Connects to the server at `path`.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let connect = || {
            let stream = socket::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(file("connect to", path))?;
        Ok(Source::Socket { stream, path: path.into() })
    }

    /// The connection once more, for whoever wants to end it.
    pub(super) fn socket(&self) -> io::Result<Option<UnixStream>> {
        match self {
            Source::Files => Ok(None),
            Source::Socket { stream, .. } => stream.try_clone().map(Some),
        }
    }

    /// Reads pages of one layer of `chain` from `first` on; at most as many as a chunk has.
    pub(super) fn read(
        &mut self,
        chain: &Chain,
        layer: usize,
        first: u64,
        to: &mut [u8],
    ) -> Result<(), Error> {
        match self {
            Source::Files => chain.read_file(layer, first, to),
            Source::Socket { stream, path } => {
                let mut question = [0; QUESTION];
                question[..4].copy_from_slice(&(layer as u32).to_le_bytes());
                question[4..8].copy_from_slice(&((to.len() / PAGE) as u32).to_le_bytes());
                question[8..].copy_from_slice(&first.to_le_bytes());
                let answer = stream.write_all(&question).and_then(|()| stream.read_exact(to));
                answer.map_err(file("read memory from", path))
            }
        }
    }
}

/// Answers one client until it goes.
///
/// # Errors
/// The connection breaks, a file cannot be read, or the client asks for what there is not.
pub fn serve(chain: &Chain, mut client: &UnixStream) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK_PAGES as usize * PAGE];
    let mut question = [0; QUESTION];
    loop {
        match client.read_exact(&mut question) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        let number = |at: usize, len: usize| {
            question[at..at + len].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let (layer, pages, first) = (number(0, 4) as usize, number(4, 4), number(8, 8));
        let end = first.checked_add(pages).filter(|&end| end <= chain.ram() / PAGE as u64);
        let (Some(file), true, Some(_)) = (chain.file(layer), pages <= CHUNK_PAGES, end) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "it asked for pages that there are not"));
        };
        let answer = &mut bytes[..pages as usize * PAGE];
        file.read_exact_at(answer, first * PAGE as u64)?;
        client.write_all(answer)?;
    }
}
