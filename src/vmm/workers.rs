//! Event loops of devices whose work may block: one thread each.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::error;
use vmm_sys_util::eventfd::EventFd;

use crate::sys::event::event;

/// Anything that an event loop runs.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A subscriber that only wakes its loop up.
pub struct Wake(pub Arc<EventFd>);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.0.as_ref(), EventSet::IN)) {
            error!("cannot watch a wake-up: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.read();
    }
}

/// A thread with an event loop for one device. It ends when this value is dropped.
pub struct WorkerThread {
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    handle: Option<JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts a loop that runs `subscriber`.
    pub fn start(name: String, subscriber: Subscriber) -> io::Result<Self> {
        let wake = Arc::new(event()?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut events = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        events.add_subscriber(Box::new(Wake(Arc::clone(&wake))));
        events.add_subscriber(subscriber);
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new().name(name).spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Err(error) = events.run() {
                    return error!("a device's event loop fails: {error}");
                }
            }
        })?;
        Ok(WorkerThread { stop, wake, handle: Some(handle) })
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}
