//! Moves a virtio device when its driver kicks or its host descriptors fire, on whichever event loop it is put.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::error;

use super::Function;
use crate::sys::lock;

/// The events of one function: first its queues, then the device's own descriptors.
pub struct Worker {
    function: Arc<Mutex<Function>>,
    kicks: Vec<RawFd>,
    events: Vec<RawFd>,
}

impl Worker {
    /// The worker of `function`.
    pub fn new(function: &Arc<Mutex<Function>>) -> Self {
        let guard = lock(function);
        let kicks = guard.kicks().iter().map(AsRawFd::as_raw_fd).collect();
        let events = guard.device().events();
        Worker { function: Arc::clone(function), kicks, events }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        // A kick is an eventfd, read when it is handled. What a device watches may stay readable while the
        // driver gives no buffers, so only its edges count.
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let kicks = self.kicks.iter().map(|&fd| (fd, EventSet::IN));
        let events = self.events.iter().map(|&fd| (fd, edges));
        for (data, (fd, set)) in kicks.chain(events).enumerate() {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data as u32, set)) {
                error!("cannot watch a device's descriptor: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let mut function = lock(&self.function);
        match events.data() as usize {
            index if index < self.kicks.len() => {
                let _ = function.kicks()[index].read();
                function.kick(index);
            }
            _ => function.ready(),
        }
    }
}
