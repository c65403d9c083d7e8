//! Frames on a stream socket, each after its length in four bytes, big end first (QEMU's stream
//! protocol, which passt speaks).
//!
//! A frame is never torn: the part of it that the socket did not take is kept and goes out before
//! anything else. The other side's bytes are read in bulk, and cut into frames here.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{ETHERNET, HEADER, Received, window};
use crate::memory::Buffers;

/// Bytes of the length before each frame.
const LENGTH: usize = 4;

/// Largest frame on the stream in bytes, Ethernet header included.
const LARGEST: usize = 65_535;

/// Bytes at the start of a frame that can be looked at before it is sent.
const HEAD: usize = window::HEAD;

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

    /// Sends `frame` without its virtio header, if `permitted` says so of its first [`HEAD`] bytes, which are then sent
    /// as it left them. False when the socket is full; a frame that the protocol cannot carry is dropped, as is
    /// one that is not permitted.
    pub fn send(&mut self, frame: &Buffers, permitted: impl FnOnce(&mut [u8]) -> bool) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        let len = frame.len().saturating_sub(HEADER);
        if !(ETHERNET..=LARGEST).contains(&len) {
            return Ok(true);
        }
        let mut head = [0; LENGTH + HEAD];
        head[..LENGTH].copy_from_slice(&(len as u32).to_be_bytes());
        let seen = frame.read_at(HEADER, &mut head[LENGTH..]);
        let head = &mut head[..LENGTH + seen];
        if !permitted(&mut head[LENGTH..]) {
            return Ok(true);
        }
        let sent = loop {
            match frame.send(self.socket.as_fd(), head, HEADER + seen) {
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
            self.output.extend_from_slice(&head[sent.min(head.len())..]);
            let kept = self.output.len();
            self.output.resize(LENGTH + len - sent, 0);
            frame.read_at(HEADER + sent.max(head.len()) - LENGTH, &mut self.output[kept..]);
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::{Memory, Pages, allocate};
    use crate::net::{MAX_FRAME, MIN_FRAME};

    fn pair() -> (Framed, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Framed::new(ours).unwrap(), theirs)
    }

    fn memory() -> Arc<Memory> {
        Arc::new(allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).unwrap())
    }

    /// A frame of `len` bytes, its virtio header included, in pieces of odd sizes.
    fn buffers(memory: &Arc<Memory>, len: usize) -> Buffers {
        let mut buffers = Buffers::new(memory);
        let (mut address, mut step) = (0, 5);
        while buffers.len() < len {
            let piece = step.min(len - buffers.len());
            buffers.push(GuestAddress(address), piece).unwrap();
            (address, step) = (address + piece as u64 + 1, step * 2 + 1);
        }
        buffers
    }

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + seed) as u8).collect()
    }

    fn packed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    /// Everything that waits on `socket`.
    fn drain(mut socket: &UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut some = [0; 5000];
        while let Ok(got @ 1..) = socket.read(&mut some) {
            bytes.extend_from_slice(&some[..got]);
        }
        bytes
    }

    #[test]
    fn a_frame_goes_out_after_its_length() {
        let (mut framed, theirs) = pair();
        let memory = memory();
        for len in [ETHERNET, HEAD, 100] {
            let frame = pattern(len, 3);
            let out = buffers(&memory, HEADER + len);
            out.write_at(HEADER, &frame);
            let look = |permitted| move |head: &mut [u8]| *head == frame[..len.min(HEAD)] && permitted;
            assert!(framed.send(&out, look.clone()(false)).unwrap());
            assert!(framed.send(&out, look(true)).unwrap());
            assert_eq!(drain(&theirs), packed(&pattern(len, 3)));
        }
    }

    #[test]
    fn frames_that_the_protocol_cannot_carry_are_dropped() {
        let (mut framed, theirs) = pair();
        let memory = memory();
        for len in [0, HEADER, MIN_FRAME - 1, HEADER + LARGEST + 1, MAX_FRAME] {
            assert!(framed.send(&buffers(&memory, len), |_| true).unwrap());
        }
        assert!(drain(&theirs).is_empty());
    }

    #[test]
    fn no_frame_is_torn_when_the_socket_fills_up() {
        let (mut framed, theirs) = pair();
        let memory = memory();
        let (mut expected, mut got, mut fulls) = (Vec::new(), Vec::new(), 0);
        for i in 0..40 {
            let frame = pattern([60_000, 1, 33_333, 500][i % 4] + ETHERNET, i);
            let out = buffers(&memory, HEADER + frame.len());
            out.write_at(HEADER, &frame);
            while !framed.send(&out, |_| true).unwrap() {
                fulls += 1;
                let mut some = [0; 4001];
                let len = (&theirs).read(&mut some).unwrap();
                got.extend_from_slice(&some[..len]);
            }
            expected.extend(packed(&frame));
        }
        while !framed.output.is_empty() {
            got.extend(drain(&theirs));
            framed.flush().unwrap();
        }
        got.extend(drain(&theirs));
        assert!(fulls > 10, "the socket was never full");
        assert!(got == expected);
    }

    #[test]
    fn frames_are_cut_from_a_stream_that_is_torn_anywhere() {
        let (mut framed, mut theirs) = pair();
        let memory = memory();
        let input = buffers(&memory, MAX_FRAME);
        let frames: Vec<_> = (0..60).map(|i| pattern([14, 65_535, 15, 700][i % 4], i)).collect();
        let stream: Vec<u8> = frames.iter().flat_map(|frame| packed(frame)).collect();
        let (mut sent, mut step, mut got) = (0, 1, Vec::new());
        while got.len() < frames.len() {
            if sent < stream.len() {
                let end = stream.len().min(sent + step);
                sent += theirs.write(&stream[sent..end]).unwrap_or(0);
                step = step * 5 % 70_001;
            }
            while let Received::Frame(len) = framed.receive(&input).unwrap() {
                let mut bytes = vec![0; len];
                input.read_at(0, &mut bytes);
                assert_eq!(bytes[..HEADER], [0; HEADER]);
                got.push(bytes.split_off(HEADER));
            }
        }
        assert!(got == frames);
        assert_eq!(framed.room().unwrap(), None);
    }

    #[test]
    fn a_frame_without_room_is_dropped_and_the_next_one_comes() {
        let (mut framed, mut theirs) = pair();
        let memory = memory();
        theirs.write_all(&packed(&pattern(200, 0))).unwrap();
        theirs.write_all(&packed(&pattern(50, 1))).unwrap();
        framed.mark_valid(true);
        let input = buffers(&memory, 100);
        assert_eq!(framed.room().unwrap(), Some(HEADER + 200));
        assert_eq!(framed.receive(&input).unwrap(), Received::Dropped);
        assert_eq!(framed.receive(&input).unwrap(), Received::Frame(HEADER + 50));
        let mut flags = [0; 1];
        assert_eq!(input.read_at(0, &mut flags), 1);
        assert_eq!(flags, [2]);
        assert_eq!(framed.receive(&input).unwrap(), Received::Nothing);
    }

    #[test]
    fn hostile_lengths_end_the_link() {
        for len in [0, 1, 13, 65_536, u32::MAX] {
            let (mut framed, mut theirs) = pair();
            theirs.write_all(&len.to_be_bytes()).unwrap();
            assert_eq!(framed.room().unwrap_err().kind(), io::ErrorKind::InvalidData, "{len}");
        }
    }

    #[test]
    fn the_end_is_an_error_after_the_last_frame() {
        let (mut framed, mut theirs) = pair();
        let memory = memory();
        theirs.write_all(&packed(&pattern(50, 1))).unwrap();
        theirs.write_all(&[0, 0]).unwrap();
        drop(theirs);
        let buffers = buffers(&memory, 200);
        assert_eq!(framed.receive(&buffers).unwrap(), Received::Frame(HEADER + 50));
        assert_eq!(framed.receive(&buffers).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(framed.send(&buffers, |_| true).is_err());
    }
}
