//! What the guest says, on its way out.
//!
//! ```text
//!   stream   standard output, a file: whoever reads it gets everything, and a guest that says more than he reads waits
//!   line     a terminal, a socket: as on a serial line, what nobody takes at once is lost
//! ```

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use crate::sys::lock;
use crate::sys::poll;

/// How long a vCPU waits for room before it looks again whether it still may. Whoever wants it back sends a signal, too.
const LOOK: Duration = Duration::from_millis(50);

/// Where the guest's output goes.
pub enum Output {
    /// Nobody loses anything.
    Stream(Stream),
    /// A writer that never blocks.
    Line(Mutex<Box<dyn Write + Send>>),
}

impl Output {
    /// Output to a file or a pipe, which may make the guest wait.
    pub fn stream(file: File) -> Self {
        Output::Stream(Stream { file, waiting: Mutex::default() })
    }

    /// Output to `writer`, which never blocks and may lose bytes.
    pub fn line(writer: impl Write + Send + 'static) -> Self {
        Output::Line(Mutex::new(Box::new(writer)))
    }

    /// Writes. For as long as `patient` says so it waits for room; what has found none goes out before the next bytes.
    pub fn write(&self, bytes: &[u8], patient: impl Fn() -> bool) {
        match self {
            Output::Stream(stream) => stream.write(bytes, patient),
            // A console that is gone must not stop the guest.
            Output::Line(writer) => drop(lock(writer).write_all(bytes)),
        }
    }
}

/// A stream, and what has found no room in it: a few bytes for each time that its guest was called away.
pub struct Stream {
    file: File,
    waiting: Mutex<Vec<u8>>,
}

impl Stream {
    fn write(&self, bytes: &[u8], patient: impl Fn() -> bool) {
        lock(&self.waiting).extend(bytes);
        while !self.advance() && patient() {
            let _ = poll::writable(self.file.as_fd(), LOOK);
        }
    }

    /// Writes what goes without waiting: byte by byte, for no more is sure to find room. True when nothing is left.
    fn advance(&self) -> bool {
        let mut waiting = lock(&self.waiting);
        let mut done = 0;
        while done < waiting.len() && poll::writable(self.file.as_fd(), Duration::ZERO).unwrap_or(true) {
            match (&self.file).write(&waiting[done..=done]) {
                Ok(written) => done += written,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => break,
                // Nobody reads any more, or the disk is full: that must not stop the guest.
                Err(_) => done = waiting.len(),
            }
        }
        waiting.drain(..done);
        waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn pipe() -> (std::io::PipeReader, Output) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader, Output::stream(OwnedFd::from(writer).into()))
    }

    #[test]
    fn a_stream_waits_for_its_reader_and_loses_nothing() {
        let (mut reader, output) = pipe();
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = bytes.clone();
        let writer = std::thread::spawn(move || output.write(&bytes, || true));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writer.join().unwrap();
        assert!(read == expected);
    }

    #[test]
    fn whoever_is_called_away_leaves_the_rest_for_later() {
        let (mut reader, output) = pipe();
        let (output, patient) = (Arc::new(output), Arc::new(AtomicBool::new(true)));
        let (also_output, also_patient) = (Arc::clone(&output), Arc::clone(&patient));
        let writer = std::thread::spawn(move || {
            also_output.write(&[1; 100_000], || also_patient.load(Ordering::SeqCst))
        });
        patient.store(false, Ordering::SeqCst);
        writer.join().unwrap();
        // Somebody who must not wait does not.
        output.write(&[2; 10], || false);
        let rest = std::thread::spawn(move || output.write(&[3; 10], || true));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        rest.join().unwrap();
        assert!(read == [vec![1; 100_000], vec![2; 10], vec![3; 10]].concat());
    }

    #[test]
    fn a_stream_that_nobody_reads_any_more_takes_everything() {
        let (reader, output) = pipe();
        drop(reader);
        output.write(&[1; 100_000], || true);
    }
}
