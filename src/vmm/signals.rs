//! Signals that ask for the end, and the time that the guest is given for an orderly one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{error, warn};
use vmm_sys_util::timerfd::TimerFd;

use super::message::{Message, Outbox};
use super::workers::Subscriber;
use crate::sys::lock;
use crate::sys::signals::Termination;

/// Turns signals that ask for the end into messages.
pub struct Signals {
    termination: Termination,
    outbox: Outbox,
}

impl Signals {
    /// A subscriber for signals that are already blocked.
    pub fn new(termination: Termination, outbox: Outbox) -> Self {
        Signals { termination, outbox }
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.termination, EventSet::IN)) {
            error!("cannot watch signals: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        while self.termination.take().is_some() {
            self.outbox.send(Message::Terminate { force: false });
        }
    }
}

/// How long nothing is said of a guest that was asked to switch itself off: most do it in this time.
const SILENCE: Duration = Duration::from_secs(1);

/// A time after which the machine is stopped by force. Whoever waits for it is told.
pub struct Deadline {
    timer: Arc<Mutex<Timer>>,
    set: bool,
    /// What is left of a time that does not pass.
    held: Option<Duration>,
    outbox: Outbox,
}

struct Timer {
    fd: TimerFd,
    /// When it expires.
    at: Instant,
    /// What is left when the timer expires the first time.
    rest: Duration,
}

impl Timer {
    fn start(&mut self, time: Duration) -> io::Result<()> {
        self.at = Instant::now() + time;
        // A zero would switch it off.
        self.fd.reset(time.max(Duration::from_millis(1)), None).map_err(io::Error::from)
    }
}

impl Deadline {
    /// No deadline yet.
    pub fn new(outbox: Outbox) -> io::Result<Self> {
        let fd = TimerFd::new().map_err(io::Error::from)?;
        let timer = Timer { fd, at: Instant::now(), rest: Duration::ZERO };
        Ok(Deadline { timer: Arc::new(Mutex::new(timer)), set: false, held: None, outbox })
    }

    /// Sets it.
    pub fn set(&mut self, after: Duration) {
        let mut timer = lock(&self.timer);
        timer.rest = after.saturating_sub(SILENCE);
        match timer.start(after.min(SILENCE)) {
            Ok(()) => self.set = true,
            Err(error) => error!("cannot set a timer: {error}"),
        }
    }

    /// Its time does not pass until [`go_on`](Self::go_on).
    pub fn hold(&mut self) {
        if self.set {
            let mut timer = lock(&self.timer);
            self.held = Some(timer.at.saturating_duration_since(Instant::now()));
            if let Err(error) = timer.fd.clear() {
                error!("cannot stop a timer: {error}");
            }
        }
    }

    /// What was left of its time when it was held passes now.
    pub fn go_on(&mut self) {
        if let Some(left) = self.held.take()
            && let Err(error) = lock(&self.timer).start(left)
        {
            error!("cannot set a timer: {error}");
        }
    }

    /// Whether its time passes, and is not over.
    #[cfg(test)]
    pub fn passes(&self) -> bool {
        lock(&self.timer).fd.is_armed().unwrap()
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.set
    }

    /// What tells the monitor when it has come.
    pub fn subscriber(&self) -> io::Result<Subscriber> {
        Ok(Box::new(Expiry { timer: Arc::clone(&self.timer), outbox: self.outbox.clone() }))
    }
}

struct Expiry {
    timer: Arc<Mutex<Timer>>,
    outbox: Outbox,
}

impl MutEventSubscriber for Expiry {
    fn init(&mut self, ops: &mut EventOps) {
        let fd = lock(&self.timer).fd.as_raw_fd();
        if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            error!("cannot watch a timer: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let mut timer = lock(&self.timer);
        let _ = timer.fd.wait();
        let rest = std::mem::take(&mut timer.rest);
        if rest.is_zero() {
            return self.outbox.send(Message::Terminate { force: true });
        }
        warn!(
            "The guest was asked to switch off; it is stopped by force in {} s, or at once by another signal",
            rest.as_secs()
        );
        if let Err(error) = timer.start(rest) {
            error!("cannot set a timer: {error}");
        }
    }
}
