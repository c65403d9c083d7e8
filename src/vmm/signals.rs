//! Signals that ask for the end, and the time that the guest is given for an orderly one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::error;
use vmm_sys_util::timerfd::TimerFd;

use super::message::{Message, Outbox};
use super::workers::Subscriber;
use crate::sys::signals::Termination;

/// Turns SIGTERM, SIGINT and SIGHUP into messages.
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

/// A time after which the machine is stopped by force.
pub struct Deadline {
    timer: Arc<Mutex<TimerFd>>,
    set: bool,
    outbox: Outbox,
}

impl Deadline {
    /// No deadline yet.
    pub fn new(outbox: Outbox) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Deadline { timer: Arc::new(Mutex::new(timer)), set: false, outbox })
    }

    /// Sets it.
    pub fn set(&mut self, after: Duration) {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        // A zero would switch the timer off.
        match timer.reset(after.max(Duration::from_millis(1)), None) {
            Ok(()) => self.set = true,
            Err(error) => error!("cannot set a timer: {error}"),
        }
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
    timer: Arc<Mutex<TimerFd>>,
    outbox: Outbox,
}

impl MutEventSubscriber for Expiry {
    fn init(&mut self, ops: &mut EventOps) {
        let fd = self.timer.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd();
        if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            error!("cannot watch a timer: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.timer.lock().unwrap_or_else(PoisonError::into_inner).wait();
        self.outbox.send(Message::Terminate { force: true });
    }
}
