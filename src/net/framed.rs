//! Frames on a stream socket, each after its length in four bytes, big end first (QEMU's stream
//! protocol, which passt speaks).
//!
//! A frame is never torn: the part of it that the socket did not take is kept and goes out before
//! anything else. The other side's bytes are read in bulk, and cut into frames here.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{ETHERNET, HEADER, Received};
use crate::memory::Buffers;

/// Bytes of the length before each frame.
const LENGTH: usize = 4;

/// Largest frame on the stream in bytes, Ethernet header included.
const LARGEST: usize = 65_535;

/// Bytes that are read at once.
const BULK: usize = 256 << 10;

/// `struct virtio_net_hdr_v1` of a frame whose checksums need not be looked at (`VIRTIO_NET_HDR_F_DATA_VALID`).
const VALID: [u8; HEADER] = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One end of the stream.
#[derive(Debug)]
pub struct Framed {
    socket: UnixStream,
    /// What was read: `input[start..end]` is not delivered yet. Empty until the first read.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// The rest of a frame that the socket took only in part.
    output: Vec<u8>,
    /// The reader does not want to check checksums.
    valid: bool,
}

impl Framed {
    /// Speaks the protocol on `socket`, which is made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Framed { socket, input: Vec::new(), start: 0, end: 0, output: Vec::new(), valid: false })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Whether received frames are marked as having good checksums.
    pub fn mark_valid(&mut self, valid: bool) {
        self.valid = valid;
    }

    /// Sends what is left of a frame. False when the socket is still full.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match (&self.socket).write(&self.output) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends `frame` without its virtio header. False when the socket is full; a frame that the protocol cannot
    /// carry is dropped.
    pub fn send(&mut self, frame: &Buffers) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        let len = frame.len().saturating_sub(HEADER);
        if !(ETHERNET..=LARGEST).contains(&len) {
            return Ok(true);
        }
        let prefix = (len as u32).to_be_bytes();
        let sent = loop {
            match frame.send(self.socket.as_fd(), &prefix, HEADER) {
                Ok(sent) => break sent,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    // More pieces than the kernel takes: no driver does that in earnest.
                    io::ErrorKind::InvalidInput => return Ok(true),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        };
        if sent < LENGTH + len {
            self.output.extend_from_slice(&prefix[sent.min(LENGTH)..]);
            let gone = sent.saturating_sub(LENGTH);
            let kept = self.output.len();
            self.output.resize(kept + len - gone, 0);
            frame.read_at(HEADER + gone, &mut self.output[kept..]);
            self.flush()?;
        }
        Ok(true)
    }

    /// Bytes that the next frame needs with a virtio header, or `None` when there is none.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone, `InvalidData` when it does not speak the protocol.
    pub fn room(&mut self) -> io::Result<Option<usize>> {
        loop {
            if let Some(len) = self.next()? {
                return Ok(Some(HEADER + len));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Length of the next frame, if all of it was read.
    fn next(&self) -> io::Result<Option<usize>> {
        let waiting = &self.input[self.start..self.end];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let len = u32::from_be_bytes(*length) as usize;
        if !(ETHERNET..=LARGEST).contains(&len) {
            let reason = format!("A frame of {len} bytes was announced");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok((len <= rest.len()).then_some(len))
    }

    /// Reads more. False when nothing waits.
    fn fill(&mut self) -> io::Result<bool> {
        if self.input.is_empty() {
            self.input = vec![0; BULK];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.input.len() - self.start < LENGTH + LARGEST {
            // The frame that has begun would not fit behind what was delivered.
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match (&self.socket).read(&mut self.input[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.end += got;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one frame after a virtio header.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub fn receive(&mut self, buffers: &Buffers) -> io::Result<Received> {
        let Some(room) = self.room()? else { return Ok(Received::Nothing) };
        let frame = self.start + LENGTH..self.start + LENGTH + room - HEADER;
        self.start = frame.end;
        if room > buffers.len() {
            return Ok(Received::Dropped);
        }
        buffers.write_at(0, if self.valid { &VALID } else { &[0; HEADER] });
        buffers.write_at(HEADER, &self.input[frame]);
        Ok(Received::Frame(room))
    }
}
