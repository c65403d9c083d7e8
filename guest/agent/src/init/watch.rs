//! While the command runs: its output, ends of processes, the power button, signals (`signalfd(2)`, `input.h`).
//!
//! ```text
//!   running ── the power button, SIGTERM, SIGINT, SIGPWR, SIGUSR1, SIGUSR2 ──► stopping ── StopTimeout ──► SIGKILL to all
//!      └──────────────── the command's process ends ──────────────┴───────────────────────────┴──► its status
//! ```

use alloc::format;
use alloc::vec::Vec;

use agent::container::Container;

use super::command::Relay;
use crate::process::{self, End, SIGCHLD, SIGKILL};
use crate::sys::{self, Clock, Errno, Fd, Poll, Result, call, nr, open};
use crate::tree;

/// Those that mean that the machine shall end: init systems' customs, and `kill 1`.
const STOP_SIGNALS: [u32; 5] = [2, 10, 12, 15, 30];

/// The power button among all keys (`KEY_POWER`), and what an event is.
const KEY_POWER: u16 = 116;
const EVENT: usize = 24;

/// How long the ends of all processes are waited for, in milliseconds.
const PATIENCE: u64 = 2000;

/// Bytes that go to the console at once.
const PART: usize = 16 << 10;

fn mask() -> u64 {
    STOP_SIGNALS.iter().chain([&SIGCHLD]).fold(0, |mask, signal| mask | 1 << (signal - 1))
}

fn set_mask(mask: u64) {
    const SET: usize = 2;
    // SAFETY: the kernel reads one number.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [SET, &raw const mask as usize, 0, 8, 0, 0]) };
}

/// From now on signals wait until they are read.
pub fn hold_signals() {
    set_mask(mask());
}

/// In a child: signals come as everybody expects them.
pub fn release_signals() {
    set_mask(0);
}

/// Watches over the machine until the command has ended, and all other processes with it. Returns the status.
pub fn until_it_ends(child: u32, relay: Option<Relay>, container: &Container) -> u8 {
    let mut watch = Watch { child, relay, end: None, limit: None, stopping: false };
    let buttons = buttons();
    let signals = signals();
    while watch.end.is_none() {
        let sources = watch.relay.as_ref().map(|relay| relay.sources.each_ref());
        let number = |fd: Option<&Fd>| fd.map_or(-1, |fd| fd.0);
        let sources = sources.map_or([-1; 2], |sources| sources.map(|source| number(source.as_ref())));
        let mut polls: Vec<Poll> = Vec::from([Poll::new(number(signals.as_ref().ok()), Poll::IN)]);
        polls.extend(sources.into_iter().map(|fd| Poll::new(fd, Poll::IN)));
        polls.extend(buttons.iter().map(|button| Poll::new(button.0, Poll::IN)));
        let now = sys::now(Clock::Monotonic);
        let limit = watch.limit.map(|limit| limit.saturating_sub(now).div_ceil(1_000_000));
        // Without a descriptor for signals, ends are looked for all the time.
        let limit = if signals.is_ok() { limit } else { Some(limit.unwrap_or(50).min(50)) };
        let _ = sys::poll(&mut polls, limit);

        watch.pass_on();
        let wants_stop = signals.as_ref().is_ok_and(read_signals)
            | buttons.iter().fold(false, |pressed, button| pressed | is_pressed(button));
        watch.reap();
        if wants_stop {
            watch.stop(container);
        }
        if watch.limit.is_some_and(|limit| sys::now(Clock::Monotonic) >= limit) {
            watch.limit = None;
            kill_all();
        }
    }
    kill_all();
    watch.finish();
    match watch.end {
        Some(End::Status(status)) => status,
        Some(End::Signal(signal)) => 128_u8.saturating_add(signal),
        None => super::NOT_SET_UP,
    }
}

struct Watch {
    child: u32,
    relay: Option<Relay>,
    end: Option<End>,
    /// When patience ends.
    limit: Option<u64>,
    stopping: bool,
}

impl Watch {
    /// Asks the command to end; a second wish changes nothing.
    fn stop(&mut self, container: &Container) {
        if !self.stopping && self.end.is_none() {
            self.stopping = true;
            self.limit = Some(
                sys::now(Clock::Monotonic)
                    .saturating_add(container.stop_seconds.saturating_mul(1_000_000_000)),
            );
            process::kill(self.child, false, container.stop_signal);
        }
    }

    /// Buries all that have ended; returns whether any process is left.
    fn reap(&mut self) -> bool {
        loop {
            match process::reap() {
                Ok(Some((pid, end))) if pid == self.child => self.end = Some(end),
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Sends to the console what the command has said.
    fn pass_on(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        let mut buffer = [0; PART];
        for source in &mut relay.sources {
            // Whoever writes without end must not keep the rest waiting.
            for _ in 0..4 {
                let Some(fd) = source else { break };
                match sys::read(fd.0, &mut buffer) {
                    Ok(got @ 1..) => {
                        let _ = relay.console.write_all(&buffer[..got]);
                        if got < PART {
                            break;
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    _ => *source = None,
                }
            }
        }
    }

    /// All have been killed: waits until they are gone, and sends on what they said at last.
    fn finish(&mut self) {
        let limit = sys::now(Clock::Monotonic) + PATIENCE * 1_000_000;
        while self.reap() && sys::now(Clock::Monotonic) < limit {
            self.pass_on();
            let _ = sys::poll(&mut [], Some(1));
        }
        self.pass_on();
    }
}

/// Ends every process but this one.
fn kill_all() {
    let _ = sys::plain(nr::KILL, [usize::MAX, SIGKILL as usize, 0]);
}

/// A descriptor from which signals are read.
fn signals() -> Result<Fd> {
    let mask = mask();
    let arguments = [usize::MAX, &raw const mask as usize, 8, open::CLOEXEC | open::NONBLOCK, 0, 0];
    // SAFETY: the kernel reads one number.
    unsafe { call(nr::SIGNALFD4, arguments) }.map(|fd| Fd(fd as i32))
}

/// Takes all that wait; returns whether one of them means the end.
fn read_signals(signals: &Fd) -> bool {
    // `struct signalfd_siginfo`: 128 bytes that begin with the signal's number.
    let mut information = [0_u8; 128];
    let mut wants_stop = false;
    while let Ok(128) = sys::read(signals.0, &mut information) {
        let number = u32::from_ne_bytes([information[0], information[1], information[2], information[3]]);
        wants_stop |= STOP_SIGNALS.contains(&number);
    }
    wants_stop
}

/// Everything that has keys.
fn buttons() -> Vec<Fd> {
    let names = tree::list("/dev/input").into_iter().filter(|name| name.starts_with("event"));
    names
        .filter_map(|name| Fd::open(&format!("/dev/input/{name}"), open::READ | open::NONBLOCK, 0).ok())
        .collect()
}

/// Whether the power button was pressed.
fn is_pressed(button: &Fd) -> bool {
    let mut events = [0_u8; 16 * EVENT];
    let mut pressed = false;
    while let Ok(got @ 1..) = sys::read(button.0, &mut events) {
        // `struct input_event`: the time, then type, code and value.
        pressed |= events[..got].chunks_exact(EVENT).any(|event| {
            let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
            (half(16), half(18), half(20)) == (1, KEY_POWER, 1)
        });
    }
    pressed
}
