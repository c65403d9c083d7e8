//! VMClock (UAPI.13, Linux `include/uapi/linux/vmclock-abi.h`): a page in guest memory that says that the machine went on
//! from a saved state, so that whoever has measured the CPU's counter forgets what it knows. No time is told here: guests have
//! kvmclock for that.

use std::io;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::sys::random;

/// Bytes of the page.
pub const SIZE: u32 = 4096;

const MAGIC: u32 = 0x4b4c_4356;
const VERSION: u16 = 1;
/// No counter is offered as a clock.
const COUNTER_INVALID: u8 = 0xff;
const TIME_TAI: u8 = 1;
/// The generation counter is there, and the guest hears of every change.
const FLAGS: u64 = 1 << 8 | 1 << 9;

const VERSION_AT: u64 = 8;
const SEQUENCE_AT: u64 = 12;
const DISRUPTION_AT: u64 = 16;
const FLAGS_AT: u64 = 24;
const GENERATION_AT: u64 = 104;

/// Writes the page of a machine that is switched on.
pub fn create(memory: &Memory, address: GuestAddress) -> io::Result<()> {
    let mut page = [0; SIZE as usize];
    let mut put = |at: u64, bytes: &[u8]| page[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(4, &SIZE.to_le_bytes());
    put(VERSION_AT, &VERSION.to_le_bytes());
    put(VERSION_AT + 2, &[COUNTER_INVALID, TIME_TAI]);
    put(FLAGS_AT, &FLAGS.to_le_bytes());
    memory.write_slice(&page, address).map_err(io::Error::other)?;
    disrupt(memory, address)
}

/// The machine goes on from a saved state: its counter and its generation are others now. A machine that was saved without
/// the page stays without it.
pub fn disrupt(memory: &Memory, address: GuestAddress) -> io::Result<()> {
    let at = |offset: u64| GuestAddress(address.0 + offset);
    let read = |offset| memory.read_obj::<u32>(at(offset)).map_err(io::Error::other);
    if read(0)? != MAGIC {
        return Ok(());
    }
    let mut new = [[0; 8]; 2];
    new.iter_mut().try_for_each(|value| random::fill(value))?;
    let write = |offset, bytes: &[u8]| memory.write_slice(bytes, at(offset)).map_err(io::Error::other);
    // Odd while it changes.
    let sequence = read(SEQUENCE_AT)? | 1;
    write(SEQUENCE_AT, &sequence.to_le_bytes())?;
    fence(Ordering::SeqCst);
    // Random, so that two machines that go on from one state differ.
    write(DISRUPTION_AT, &new[0])?;
    write(GENERATION_AT, &new[1])?;
    fence(Ordering::SeqCst);
    write(SEQUENCE_AT, &sequence.wrapping_add(1).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pages, allocate};

    #[test]
    fn marks_change_and_the_rest_stays() {
        let memory = allocate(&[(GuestAddress(0), 1 << 20)], Pages::Transparent).unwrap();
        let place = GuestAddress(0x3000);
        let read = || {
            let mut page = [0; SIZE as usize];
            memory.read_slice(&mut page, place).unwrap();
            page
        };
        disrupt(&memory, place).unwrap();
        assert_eq!(read(), [0; SIZE as usize], "nothing appears where nothing was");
        create(&memory, place).unwrap();
        let first = read();
        assert_eq!((&first[..4], &first[4..12]), (&b"VCLK"[..], &[0, 0x10, 0, 0, 1, 0, 0xff, 1][..]));
        disrupt(&memory, place).unwrap();
        let second = read();
        let word = |page: &[u8], at: u64| page[at as usize..][..8].to_vec();
        for at in [DISRUPTION_AT, GENERATION_AT] {
            assert_ne!(word(&first, at), word(&second, at));
        }
        let sequence = |page: &[u8]| u32::from_le_bytes(page[12..16].try_into().unwrap());
        assert_eq!((sequence(&first), sequence(&second)), (2, 4));
        assert_eq!((&first[112..], &first[24..104]), (&second[112..], &second[24..104]));
    }
}
