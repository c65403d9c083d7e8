//! Whole requests on a file or block device, done with blocking system calls, and what the host turned out not to support.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Request, sync_failed};
use crate::memory::Buffers;
use crate::sys::file::{self, Hole};

/// A file or block device that holds the bytes of a disk.
pub struct Target {
    file: Arc<File>,
    is_device: bool,
    no_punch: bool,
    no_zero: bool,
}

impl Target {
    /// A target about which nothing is known yet.
    pub fn new(file: Arc<File>, is_device: bool) -> Self {
        Target { file, is_device, no_punch: false, no_zero: false }
    }

    /// The file itself.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Lets other processes have the file.
    pub fn unlock(&self) {
        file::unlock(&self.file);
    }

    /// Whether a discard is a hole in a file.
    pub fn can_punch_to_discard(&self) -> bool {
        !self.is_device && !self.no_punch
    }

    /// The hole that makes a range zero, if there is one that may work.
    pub fn hole_for_zeroes(&self, unmap: bool) -> Option<Hole> {
        if unmap && !self.no_punch { Some(Hole::Punch) } else { (!self.no_zero).then_some(Hole::Zero) }
    }

    /// Does a whole request and waits for it.
    pub fn run(&mut self, request: &Request) -> io::Result<()> {
        match *request {
            Request::Read { offset, ref buffers } => self.read(offset, buffers),
            Request::Write { offset, ref buffers } => self.write(offset, buffers),
            Request::Flush => self.file.sync_data().map_err(sync_failed),
            Request::Discard { offset, len } => self.discard(offset, len),
            Request::WriteZeroes { offset, len, unmap } => self.write_zeroes(offset, len, unmap),
        }
    }

    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let mut done = 0;
        while done < buffers.len() {
            match file::read_at(&self.file, buffers, done, offset + done as u64)? {
                // The file became shorter behind our back.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let mut done = 0;
        while done < buffers.len() {
            match file::write_at(&self.file, buffers, done, offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// A hint: where the host cannot do it, nothing happens.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.no_punch {
            return Ok(());
        }
        let result = if self.is_device {
            file::discard_blocks(&self.file, offset, len)
        } else {
            file::make_hole(&self.file, Hole::Punch, offset, len)
        };
        match result {
            Err(error) if file::is_unsupported(&error) => {
                self.no_punch = true;
                Ok(())
            }
            other => other,
        }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        while let Some(hole) = self.hole_for_zeroes(unmap) {
            match file::make_hole(&self.file, hole, offset, len) {
                Err(error) if file::is_unsupported(&error) => match hole {
                    Hole::Punch => self.no_punch = true,
                    Hole::Zero => self.no_zero = true,
                },
                other => return other,
            }
        }
        write_zero_bytes(&self.file, offset, len)
    }
}

/// Writes zeroes the hard way.
fn write_zero_bytes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let run = (end - at).min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..run as usize], at)?;
        at += run;
    }
    Ok(())
}
