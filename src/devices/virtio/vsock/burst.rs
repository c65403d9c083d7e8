//! Data of the host on its way to the guest: read from the socket straight into receive buffers, several of them at a
//! time while the host sends much.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::RECEIVE;
use super::packet::HEADER;
use crate::devices::virtio::{Chain, Lent, Violation};
use crate::memory::{Buffers, MAX_PIECES};

/// Receive buffers that are filled by one read at most.
const LONGEST: usize = 16;

/// Receive buffers for one read, headers still to be written.
pub struct Burst {
    chains: Vec<Chain>,
    room: Buffers,
}

/// How many receive buffers the next read is for.
#[derive(Debug)]
pub struct Length(usize);

impl Default for Length {
    fn default() -> Self {
        Length(1)
    }
}

/// Takes a receive buffer that has room for a header.
pub fn take(lent: &mut Lent) -> Result<Option<Chain>, Violation> {
    match lent.take(RECEIVE)? {
        Some(chain) if chain.writable.len() < HEADER => {
            let reason = "a receive buffer has no room for a header".into();
            Err(Violation::Chain { queue: RECEIVE, reason })
        }
        chain => Ok(chain),
    }
}

impl Burst {
    /// Takes receive buffers for `credit` bytes; `None` if there are none.
    pub fn take(length: &Length, credit: usize, lent: &mut Lent) -> Result<Option<Self>, Violation> {
        let mut burst = Burst { chains: Vec::new(), room: Buffers::new(lent.memory()) };
        while burst.chains.len() < length.0 && burst.room.len() < credit {
            let Some(chain) = take(lent)? else { break };
            let data = chain.writable.part(HEADER, credit - burst.room.len());
            let pieces = data.iovecs().len();
            if data.is_empty() || pieces > MAX_PIECES {
                let reason = "a receive buffer is too small or too scattered".into();
                return Err(Violation::Chain { queue: RECEIVE, reason });
            }
            if burst.room.iovecs().len() + pieces > MAX_PIECES {
                lent.put_back(RECEIVE);
                break;
            }
            burst.room.extend(&data);
            burst.chains.push(chain);
        }
        Ok(if burst.chains.is_empty() { None } else { Some(burst) })
    }

    /// Reads once.
    pub fn read(&self, socket: &UnixStream, length: &mut Length) -> io::Result<usize> {
        loop {
            match self.room.read_stream(socket.as_fd()) {
                Ok(got) => {
                    length.0 = if got == self.room.len() { (2 * length.0).min(LONGEST) } else { 1 };
                    return Ok(got);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the first `got` bytes of it to `send`, buffer by buffer, and puts the buffers that are left back.
    pub fn send(
        self,
        mut got: usize,
        lent: &mut Lent,
        mut send: impl FnMut(Chain, usize, &mut Lent) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut unused = 0;
        for chain in self.chains {
            match got.min(chain.writable.len() - HEADER) {
                0 => unused += 1,
                len => {
                    got -= len;
                    send(chain, len, lent)?;
                }
            }
        }
        (0..unused).for_each(|_| lent.put_back(RECEIVE));
        Ok(())
    }
}
