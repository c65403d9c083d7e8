//! QEMU's copy-on-write format (docs/interop/qcow2 of QEMU), read and written by the imago library. Blocking.
//!
//! An image names the file that it stands on, and an image may come from anybody. So a backing file is opened only
//! if it lies in the directory of the image that names it, or below, or is what the user gave (`backing=PATH`);
//! its format is what the image says, never guessed; it is opened read-only. External data files are refused.

mod still;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{DenyImplicitOpenGate, FormatAccess, Mapping, ShallowMapping, StorageOpenOptions};

use super::{Config, Disk, Done, Error, Format, Geometry, Request, SECTOR, raw, sync_failed};
use crate::memory::Buffers;
use crate::sys::file::{self, Hole};

pub use still::Still;

type Storage = imago::file::File;
type Image = FormatAccess<Storage>;

/// The longest chain of images.
const MAX_DEPTH: usize = 64;

/// A qcow2 disk.
pub struct Qcow2 {
    image: Arc<Image>,
    /// The file of the image itself.
    file: Arc<File>,
    geometry: Geometry,
    done: Vec<Done>,
}

impl Qcow2 {
    /// Opens and locks the disk that `config` asks for, and what it stands on.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let file = raw::open_locked(&config.path, !config.read_only)?;
        let failed = |source| Error::Io { action: "open", path: config.path.clone(), source };
        let again = file.try_clone().map_err(failed)?;
        let image = open_image(again, &config.path, !config.read_only, config.backing.as_deref(), 0)?;
        let size = image.size();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let reason = format!("its size of {size} bytes is not a multiple of 512");
            return Err(Error::Qcow2 { path: config.path.clone(), reason });
        }
        let geometry =
            Geometry { size, physical_block: 4096, read_only: config.read_only, discard: !config.read_only };
        Ok(Qcow2 { image: Arc::new(image), file: Arc::new(file), geometry, done: Vec::new() })
    }

    /// The next part of the disk, from `at` on, that may be something else than zeroes: as much of it as lies together.
    pub fn next_data(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        next_data(&self.image, at)
    }

    fn run(&mut self, request: &Request) -> io::Result<()> {
        match *request {
            Request::Read { offset, ref buffers } => self.read(offset, buffers),
            Request::Write { offset, ref buffers } => {
                let slices = buffers.slices();
                let (vector, _guard) = IoVector::from_volatile_slice(&slices[..]);
                self.image.writev(vector, offset)
            }
            Request::Flush => {
                self.image.flush()?;
                self.image.sync().map_err(sync_failed)
            }
            Request::Discard { offset, len } => {
                match self.give_back(offset, len, |image| image.discard_to_any(offset, len)) {
                    // A hint: an image that cannot do it stays as it is.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                    other => other,
                }
            }
            Request::WriteZeroes { offset, len, unmap: true } => {
                match self.give_back(offset, len, |image| image.discard_to_zero(offset, len)) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        write_zeroes(&self.image, offset, len)
                    }
                    other => other,
                }
            }
            Request::WriteZeroes { offset, len, unmap: false } => write_zeroes(&self.image, offset, len),
        }
    }

    /// Calls `discard`, then makes holes in the file where clusters became free: imago only frees them for the
    /// image itself. Nobody can have taken them again in between.
    fn give_back(
        &mut self,
        offset: u64,
        len: u64,
        discard: impl FnOnce(&mut Image) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut before = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let (mapping, run) = self.image.get_shallow_mapping(at, offset + len - at)?;
            if let ShallowMapping::Raw { offset: place, writable: true, .. } = mapping {
                before.push((at, place, run));
            }
            at += run.max(1);
        }
        // Those who read a still image see nothing that is given back.
        let image = Arc::get_mut(&mut self.image).ok_or(io::ErrorKind::Unsupported)?;
        discard(image)?;
        for (start, place, len) in before {
            let mut done = 0;
            while done < len {
                let (mapping, run) = self.image.get_shallow_mapping(start + done, len - done)?;
                if !matches!(mapping, ShallowMapping::Raw { .. }) {
                    match file::make_hole(&self.file, Hole::Punch, place + done, run) {
                        Err(error) if !file::is_unsupported(&error) => return Err(error),
                        _ => {}
                    }
                }
                done += run.max(1);
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let slices = buffers.slices();
        let (vector, _guard) = IoVectorMut::from_volatile_slice(&slices[..]);
        self.image.readv(vector, offset)
    }
}

impl Disk for Qcow2 {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, tag: u64, request: Request) {
        let result = self.run(&request);
        self.done.push(Done { tag, request, result });
    }

    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }
}

fn next_data(image: &Image, mut at: u64) -> io::Result<Option<Range<u64>>> {
    let size = image.size();
    while at < size {
        let (mapping, len) = image.get_mapping(at, size - at)?;
        let end = at + len.max(1);
        match mapping {
            Mapping::Zero { .. } => at = end,
            Mapping::Eof { .. } => break,
            _ => return Ok(Some(at..end.min(size))),
        }
    }
    Ok(None)
}

/// Makes a range zero, in images whose version has no zero clusters by writing zeroes.
fn write_zeroes(image: &Image, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    match image.write_zeroes(offset, len) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            (offset..offset + len).step_by(ZEROES.len()).try_for_each(|at| {
                let run = (offset + len - at).min(ZEROES.len() as u64);
                image.write(&ZEROES[..run as usize], at)
            })
        }
        other => other,
    }
}

/// Whether a file begins as a qcow2 image does. Files that cannot be read do not.
pub fn has_magic(path: &Path) -> bool {
    let mut magic = [0; 4];
    // Only of regular files: reading others may have effects.
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"QFI\xfb"
}

/// The table that the image's header names and that the file no longer has: imago would read zeroes there, take
/// clusters that are in use for free, and write over them.
fn cut_off(file: &File) -> io::Result<Option<&'static str>> {
    let end = file::length(file)?;
    let number = |at: u64, size: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes[8 - size..], at)?;
        Ok::<_, io::Error>(u64::from_be_bytes(bytes))
    };
    let inside = |start: u64, size: u64| start.checked_add(size).is_some_and(|last| last <= end);
    let (mapping, entries, counts) = (number(40, 8)?, number(36, 4)?, number(48, 8)?);
    if !inside(mapping, entries * 8) {
        return Ok(Some("its table of clusters"));
    }
    // The first block of reference counts is that of the header itself.
    if !inside(counts, 8) || !inside(number(counts, 8)? & !511, 512) {
        return Ok(Some("its table of reference counts"));
    }
    Ok(None)
}

/// Opens an image and all that it stands on.
fn open_image(
    file: File,
    path: &Path,
    write: bool,
    given: Option<&Path>,
    depth: usize,
) -> Result<Image, Error> {
    let refused = |reason: String| Error::Qcow2 { path: path.into(), reason };
    let failed = |source| Error::Io { action: "read the qcow2 header of", path: path.into(), source };
    if depth == MAX_DEPTH {
        return Err(refused(format!("more than {MAX_DEPTH} images stand on each other")));
    }
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_err() || magic != *b"QFI\xfb" {
        return Err(refused("it does not begin as one; say `format=raw` if its bytes are the disk's".into()));
    }
    if let Some(table) = cut_off(&file).map_err(failed)? {
        return Err(refused(format!("it is cut off: {table} is behind the end of the file")));
    }
    let storage = open_storage(file, path, write)?;
    let mut image = imago::qcow2::Qcow2::<Storage>::open_image(storage, write).map_err(failed)?;
    if image.requires_external_data_file() {
        return Err(refused(
            "its data are in another file: convert it with `qemu-img convert -O qcow2`".into(),
        ));
    }
    image.set_data_file(None);
    let name = image.implicit_backing_file().cloned();
    let format = image.implicit_backing_format().cloned();
    let backing = match (given, name) {
        (Some(given), _) => {
            let format = match format {
                Some(format) => backing_format(&format, path, &given.display().to_string())?,
                None => Format::by_name(given)?,
            };
            Some(open_backing(given, format, depth)?)
        }
        (None, Some(name)) => {
            let refused =
                |reason: String| Error::Backing { path: path.into(), backing: name.clone(), reason };
            let Some(format) = format else {
                return Err(refused(format!(
                    "and does not say in which format that is: say it with `qemu-img rebase -u -b {name} -F raw {0}` \
                     (or -F qcow2)",
                    path.display()
                )));
            };
            let format = backing_format(&format, path, &name)?;
            let place = beside(path, &name).map_err(refused)?;
            Some(open_backing(&place, format, depth)?)
        }
        (None, None) => None,
    };
    image.set_backing(backing);
    // Whatever else the header may name: nothing more is opened.
    image.open_implicit_dependencies_gated(DenyImplicitOpenGate::default()).map_err(failed)?;
    Ok(FormatAccess::new(image))
}

fn backing_format(format: &str, path: &Path, backing: &str) -> Result<Format, Error> {
    match format {
        "raw" | "file" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(Error::Backing {
            path: path.into(),
            backing: backing.into(),
            reason: format!("whose format {other} is not known here: raw and qcow2 are"),
        }),
    }
}

/// The backing file that an image names, if it lies where it may.
fn beside(image: &Path, name: &str) -> Result<PathBuf, String> {
    if name.starts_with("json:") || name.contains("://") {
        return Err("which is not a file: give a file with `backing=PATH`".into());
    }
    let directory = image.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = |path: &Path| path.canonicalize().map_err(|error| format!("which cannot be found: {error}"));
    let (place, directory) = (real(&directory.join(name))?, real(directory)?);
    if place.starts_with(&directory) {
        Ok(place)
    } else {
        Err(format!(
            "which lies outside of the image's directory: if that is meant, say `backing={}`",
            place.display()
        ))
    }
}

fn open_backing(path: &Path, format: Format, depth: usize) -> Result<Image, Error> {
    let file = raw::open_locked(path, false)?;
    if format == Format::Qcow2 {
        return open_image(file, path, false, None, depth + 1);
    }
    let storage = open_storage(file, path, false)?;
    let failed = |source| Error::Io { action: "open", path: path.into(), source };
    Ok(FormatAccess::new(imago::raw::Raw::open_image(storage, false).map_err(failed)?))
}

fn open_storage(file: File, path: &Path, write: bool) -> Result<Storage, Error> {
    let options = StorageOpenOptions::new().filename(path).write(write);
    let failed = |source| Error::Io { action: "open", path: path.into(), source };
    Storage::from_open_file(file, options).map_err(failed)
}
