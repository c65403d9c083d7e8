//! Images to a registry: what it has not yet, in pieces, so that what breaks off goes on from the last whole piece.
//!
//! ```text
//!   HEAD blob ─► it has it ──────────────────────────────────────────────────────────────► next
//!        └─► POST, with the repository of the registry that has it, if we know one ─► mounted ─► next
//!               └─► session ─► PATCH, PATCH, … PUT with the digest
//!                      ▲          └─ uploads/session-ID: where the next piece goes, for the next push
//!                      └─ GET: how much the registry has, after a connection broke or a push was killed
//! ```
//!
//! Each blob is compared with its digest before its last piece is sent.
//!
//! docker-registry gives up an upload that broke in the middle of a piece; others go on from any byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::PathBuf;

use super::asked::Part;
use super::client::{ATTEMPTS, Client};
use super::endpoints::Session;
use super::{Moved, Progress, at_once};
use crate::image::manifest::{Descriptor, Manifest};
use crate::image::refs::Index;
use crate::image::{Digest, Error, Hasher, Name, Store, Upload};

/// Bytes of a piece. Docker's own client sends pieces without end, the smallest limit of a public registry is 100 MB.
pub const PIECE: u64 = 8 << 20;

/// The largest file that says where an upload stands.
const MAX_SESSION: u64 = 16 << 10;

impl Store {
    /// Pushes an image under a tag.
    ///
    /// # Errors
    /// When a blob is missing or corrupt, or the registry refuses.
    pub fn push(
        &self,
        image: &Descriptor,
        to: &Client,
        tag: &str,
        progress: Progress,
    ) -> Result<Moved, Error> {
        let mut lease = self.lease()?;
        lease.hold(&image.digest)?;
        let bytes = self.read_document(image)?;
        let manifest = Manifest::parse(&bytes, &format!("Manifest {}", image.digest))?;
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in manifest.blobs() {
            if blobs.iter().all(|other| other.digest != blob.digest) {
                blobs.push(blob);
            }
        }
        let elsewhere = self.elsewhere(to);
        let moved = at_once(&blobs, |blob| {
            let from = elsewhere.get(&blob.digest).map(String::as_str);
            self.send(to, blob, from, progress)
        })?;
        to.patiently(|| to.put_manifest(tag, &image.media_type, &bytes))?;
        Ok(moved)
    }

    /// Blobs that other repositories of the registry should have: images here have their names.
    fn elsewhere(&self, to: &Client) -> BTreeMap<Digest, String> {
        let mut known = BTreeMap::new();
        let index = self.read_index().unwrap_or_default();
        for entry in &index.manifests {
            let name = Index::name_of(entry).and_then(|name| name.parse::<Name>().ok());
            let Some(name) = name else { continue };
            if let Some((host, repository)) = name.registry()
                && host == to.host
                && repository != to.repository
                && let Ok(manifest) = self.manifest(entry)
            {
                known.extend(manifest.blobs().map(|blob| (blob.digest, repository.to_string())));
            }
        }
        known
    }

    /// Sends a blob unless the registry has it; says how many bytes that took.
    fn send(
        &self,
        to: &Client,
        blob: &Descriptor,
        from: Option<&str>,
        progress: Progress,
    ) -> Result<Option<u64>, Error> {
        if to.patiently(|| to.has(&blob.digest))? {
            return Ok(None);
        }
        let file = self.open_blob(&blob.digest)?;
        let size = file.metadata().map_err(Error::io("look at", &self.blob(&blob.digest)))?.len();
        if size != blob.size {
            self.checked_blob(&blob.digest)?;
            return Err(Error::WrongSize { digest: blob.digest, wanted: blob.size, found: size });
        }
        let name = Digest::of(format!("{}/{} {}", to.host, to.repository, blob.digest).as_bytes()).hex();
        let mut note = Note(self.resume(&format!("session-{name}"))?);
        let session = match note.read() {
            // The registry may have forgotten it.
            Some(session) => to.patiently(|| to.stand(&session)).ok().filter(|stand| stand.have <= size),
            None => None,
        };
        let sending = Sending {
            to,
            blob,
            from,
            place: self.blob(&blob.digest),
            file: &file,
            size,
            told: &|at| progress(&blob.digest, at, size),
            seen: Seen { file: &file, hasher: Hasher::default(), at: 0 },
            note,
            session,
            sent: 0,
            failed: 0,
            whole: false,
        };
        sending.finish().map(|sent| Some(sent).filter(|&sent| sent > 0))
    }
}

/// A blob on its way.
struct Sending<'a> {
    to: &'a Client,
    blob: &'a Descriptor,
    /// A repository of the registry that should have it.
    from: Option<&'a str>,
    /// Where it is, for messages.
    place: PathBuf,
    file: &'a File,
    /// Its bytes.
    size: u64,
    /// Told how many bytes are there.
    told: &'a dyn Fn(u64),
    seen: Seen<'a>,
    note: Note,
    session: Option<Session>,
    /// Bytes that were sent.
    sent: u64,
    /// Attempts in a row that came to nothing.
    failed: u32,
    /// The registry takes no pieces.
    whole: bool,
}

impl Sending<'_> {
    /// Tries until the registry has it; returns how many bytes that took.
    fn finish(mut self) -> Result<u64, Error> {
        loop {
            match self.attempt() {
                Ok(()) => return Ok(self.sent),
                Err(error) => self.recover(error)?,
            }
        }
    }

    fn part(&self, start: u64, end: u64) -> Part<'_> {
        Part { file: self.file, start, end, progress: self.told }
    }

    /// Sends what the registry has not yet.
    fn attempt(&mut self) -> Result<(), Error> {
        let (to, size) = (self.to, self.size);
        let mut at = match self.session.take() {
            Some(session) => session,
            None => match to.begin(&self.blob.digest, self.from)? {
                Some(session) => session,
                None => return Ok(()),
            },
        };
        self.session = Some(at.clone());
        let piece = PIECE.max(at.smallest.min(size));
        while !self.whole && size - at.have > piece {
            let end = at.have + piece;
            self.seen.up_to(end).map_err(Error::io("read", &self.place))?;
            let next = to.piece(&at, self.part(at.have, end))?;
            self.sent += end - at.have;
            self.failed = 0;
            at = next;
            self.note.write(&at)?;
            self.session = Some(at.clone());
        }
        // The registry would find it out, too, and be blamed for it.
        self.seen.up_to(size).map_err(Error::io("read", &self.place))?;
        let found = self.seen.hasher.clone().digest();
        if found != self.blob.digest {
            return Err(Error::Corrupt { digest: self.blob.digest, found });
        }
        to.end(&at, &self.blob.digest, self.part(at.have, size))?;
        self.sent += size - at.have;
        Ok(())
    }

    /// Finds out how to go on after an attempt that failed.
    ///
    /// # Errors
    /// The same, if it is of no use to try again.
    fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.failed += 1;
        let stands = self.session.take();
        match &error {
            // A registry that does not take pieces may take the whole.
            Error::Registry { .. } if !self.whole && stands.as_ref().is_some_and(|stand| stand.have == 0) => {
                self.whole = true;
                Ok(())
            }
            passing if passing.is_passing() && self.failed < ATTEMPTS => {
                self.to.wait(self.failed, passing);
                let stand = stands.and_then(|stand| self.to.stand(&stand).ok());
                self.session = stand.filter(|stand| stand.have <= self.size);
                Ok(())
            }
            _ => {
                if error.is_passing() {
                    self.note.0.keep();
                }
                Err(error)
            }
        }
    }
}

/// How much of a blob has been looked at, wherever the registry stands.
struct Seen<'a> {
    file: &'a File,
    hasher: Hasher,
    at: u64,
}

impl Seen<'_> {
    /// Looks at what comes before byte `end`, which is not in it.
    fn up_to(&mut self, end: u64) -> io::Result<()> {
        let part = Part { file: self.file, start: self.at.min(end), end, progress: &|_| {} };
        self.at += io::copy(&mut BufReader::with_capacity(1 << 17, part), &mut self.hasher)?;
        Ok(())
    }
}

/// Where an upload stands, for the next push should this one be killed.
struct Note(Upload);

impl Note {
    fn read(&mut self) -> Option<Session> {
        let mut text = String::new();
        let mut file = self.0.file();
        file.rewind().ok()?;
        file.take(MAX_SESSION).read_to_string(&mut text).ok()?;
        let (have, url) = text.strip_suffix('\n')?.split_once(' ')?;
        Some(Session { url: url.into(), have: have.parse().ok()?, smallest: 0 })
    }

    fn write(&mut self, session: &Session) -> Result<(), Error> {
        self.0.clear()?;
        self.0.append(format!("{} {}\n", session.have, session.url).as_bytes())
    }
}
