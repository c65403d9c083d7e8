//! Text output, to COM1 (National Semiconductor PC16550D data sheet) or, with `debugcon` on the command
//! line, to port 0xe9, or with `mute` to nobody.
//!
//! Bytes are written without asking whether the transmitter is ready: no VMM loses one, and a machine
//! without the device does not hang.

use core::sync::atomic::{AtomicU16, Ordering};

use crate::{cmdline, cpu};

pub const COM1: u16 = 0x3f8;
const DEBUGCON: u16 = 0xe9;
/// Where no device is.
const NOBODY: u16 = 0x4f0;

static PORT: AtomicU16 = AtomicU16::new(COM1);

/// Sends output where the command line says.
pub fn choose_port() {
    for (word, port) in [("debugcon", DEBUGCON), ("mute", NOBODY)] {
        if cmdline::flag(word) {
            PORT.store(port, Ordering::Relaxed);
        }
    }
}

/// Whether a byte waits at COM1: bit 0 of its line status register.
pub fn has_input() -> bool {
    cpu::in8(COM1 + 5) & 1 != 0
}

/// What [`print!`](crate::print) prints. Not `core::fmt`: a formatted number would cost a slow guest half
/// a millisecond.
pub trait Print {
    fn print(&self);
}

impl Print for [u8] {
    #[inline(never)]
    fn print(&self) {
        let port = PORT.load(Ordering::Relaxed);
        for byte in self {
            cpu::out8(port, *byte);
        }
    }
}

impl Print for str {
    fn print(&self) {
        self.as_bytes().print();
    }
}

impl<T: Print + ?Sized> Print for &T {
    fn print(&self) {
        (*self).print();
    }
}

impl Print for u64 {
    #[inline(never)]
    fn print(&self) {
        let (mut digits, mut first, mut rest) = ([0u8; 20], 20, *self);
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        digits[first..].print();
    }
}

impl Print for u32 {
    fn print(&self) {
        u64::from(*self).print();
    }
}

/// A number that prints as `0x…`.
pub struct Hex(pub u64);

impl Print for Hex {
    #[inline(never)]
    fn print(&self) {
        let (mut digits, mut first, mut rest) = ([0u8; 18], 18, self.0);
        loop {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
            if rest == 0 {
                break;
            }
        }
        first -= 2;
        digits[first] = b'0';
        digits[first + 1] = b'x';
        digits[first..].print();
    }
}

/// Prints its arguments one after the other; a line ends where the caller says `"\n"`.
#[macro_export]
macro_rules! print {
    ($($what:expr),+ $(,)?) => {{ $( $crate::serial::Print::print(&$what); )+ }};
}
