//! What reaches the monitor: notices of devices, exits of vCPUs, signals, keys and requests of clients.
//!
//! Everything arrives through one channel, with an eventfd that wakes the event loop.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::capture::Capture;
use super::freeze::Held;
use super::request::{self, Request, Response, Save};
use crate::kvm::Exit;
use crate::notice::{Notice, Notifier};
use crate::sys::event::event;

/// One message.
pub enum Message {
    /// A device tells something.
    Notice(Notice, Instant),
    /// A vCPU cannot run on.
    Exit(usize, Exit),
    /// The machine cannot go on, and why.
    Failed(String),
    /// A signal asks for the end, or its time is over.
    Terminate {
        /// Do not wait for the guest.
        force: bool,
    },
    /// Somebody asks for something.
    Request(Request, Sender<Response>),
    /// A snapshot is to be written: what is in the machine now is to be captured, with these file systems of the guest.
    Capture(Save, Option<Held>, Sender<Result<Capture, request::Error>>),
    /// The snapshot of a machine that stands still until then is written, or could not be.
    Written {
        /// The machine is to end now.
        end: bool,
    },
    /// The guest's file systems hold still, as it was asked for, or why not: now the machine is to be saved.
    Frozen(Request, Held, Sender<Response>),
    /// They go on again.
    Thawed,
}

/// Where messages are put. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    sender: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Outbox {
    /// Sends a message. It never blocks; when the monitor is gone the message is lost.
    pub fn send(&self, message: Message) {
        if self.sender.send(message).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    /// Asks for something and waits for the answer.
    pub fn request(&self, request: Request) -> Response {
        let (sender, answer) = mpsc::channel();
        self.send(Message::Request(request, sender));
        answer.recv().unwrap_or(Err(super::request::Error::Ended))
    }

    /// The way for devices.
    pub fn notifier(&self) -> Notifier {
        let outbox = self.clone();
        Notifier::new(move |notice| outbox.send(Message::Notice(notice, Instant::now())))
    }
}

/// Where messages are taken from.
pub struct Inbox {
    /// `None` when nobody listens any more.
    receiver: Option<Receiver<Message>>,
    outbox: Outbox,
}

impl Inbox {
    /// A new, empty channel.
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Some(receiver);
        Ok(Inbox { receiver, outbox: Outbox { sender, wake: Arc::new(event()?) } })
    }

    /// A way to send here.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The next message, if one is there.
    pub fn take(&self) -> Option<Message> {
        self.receiver.as_ref()?.try_recv().ok()
    }

    /// Listens no more: whoever waits for an answer hears that there is none.
    pub fn close(&mut self) {
        self.receiver = None;
    }

    /// Drops what devices, vCPUs and memory have sent and keeps the rest.
    pub fn forget_guest(&self) {
        self.sift(|message| !matches!(message, Message::Notice(..) | Message::Exit(..) | Message::Failed(_)));
    }

    /// Whether the guest has done what ends or restarts its machine, and nobody has taken that message yet.
    pub fn has_end(&self) -> bool {
        let mut found = false;
        self.sift(|message| {
            found |= matches!(
                message,
                Message::Notice(Notice::Reset | Notice::PowerOff | Notice::Panic, _)
                    | Message::Exit(..)
                    | Message::Failed(_)
            );
            true
        });
        found
    }

    /// Drops the messages that are not to be kept; the others stay in their order.
    fn sift(&self, mut keep: impl FnMut(&Message) -> bool) {
        let kept: Vec<_> = std::iter::from_fn(|| self.take()).filter(|message| keep(message)).collect();
        kept.into_iter().for_each(|message| self.outbox.send(message));
    }

    /// Readable when a message may be there.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.outbox.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_machine_is_found_and_stays_in_its_place() {
        let mut inbox = Inbox::new().unwrap();
        let tell = |inbox: &Inbox, notice| inbox.outbox().send(Message::Notice(notice, Instant::now()));
        for end in [Notice::Reset, Notice::PowerOff, Notice::Panic] {
            tell(&inbox, Notice::Milestone(1));
            inbox.outbox().send(Message::Terminate { force: true });
            assert!(!inbox.has_end());
            tell(&inbox, end);
            assert!(inbox.has_end() && inbox.has_end());
            assert!(matches!(inbox.take(), Some(Message::Notice(Notice::Milestone(1), _))));
            assert!(matches!(inbox.take(), Some(Message::Terminate { force: true })));
            inbox.forget_guest();
            assert!(!inbox.has_end() && inbox.take().is_none());
        }
        inbox.outbox().send(Message::Failed("memory".into()));
        assert!(inbox.has_end());
        inbox.close();
        assert!(!inbox.has_end());
    }
}
