//! Input of the guest's console: bytes from the host go to the serial port, `Ctrl-A` and a key go to the monitor.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::error;
use vmm_sys_util::eventfd::EventFd;

use super::message::{Message, Outbox};
use crate::console::{Client, Escapes, Input};
use crate::devices::serial::Serial;
use crate::sys::lock;
use crate::sys::socket::Listener;

const HELP: &[u8] = b"\r\n  Ctrl-A x   end the machine at once\r\n  Ctrl-A p   press the power button\r\n  \
    Ctrl-A h   this help\r\n  Ctrl-A Ctrl-A   send Ctrl-A to the guest\r\n";

/// What a key after `Ctrl-A` asks for.
enum Command {
    End,
    PowerButton,
    Help,
}

impl Command {
    fn of(key: u8) -> Option<Self> {
        match key {
            b'x' | b'X' => Some(Command::End),
            b'p' | b'P' => Some(Command::PowerButton),
            b'h' | b'H' | b'?' => Some(Command::Help),
            _ => None,
        }
    }
}

/// The subscriber that feeds the serial port.
pub struct ConsoleInput {
    source: Option<Source>,
    listener: Option<(Listener, Client)>,
    escapes: Escapes,
    /// Bytes that the serial port had no room for; nothing more is read until it has.
    waiting: Vec<u8>,
    serial: Arc<Serial>,
    drained: EventFd,
    outbox: Outbox,
}

/// Whoever types at the moment.
struct Source {
    file: File,
    /// Regular files cannot be watched: they are always readable.
    watched: bool,
}

impl ConsoleInput {
    /// Input for `serial`, which signals `drained` when it takes more.
    pub fn new(input: Input, serial: &Arc<Serial>, drained: EventFd, outbox: Outbox) -> Self {
        let (fd, listener, escapes) = match input {
            Input::Stream { fd, escapes } => (Some(fd), None, escapes),
            Input::Listener { listener, client } => (None, Some((listener, client)), false),
        };
        ConsoleInput {
            source: fd.map(|fd| Source { file: fd.into(), watched: false }),
            listener,
            escapes: Escapes::new(escapes),
            waiting: Vec::new(),
            serial: Arc::clone(serial),
            drained,
            outbox,
        }
    }

    /// Watches the source while nothing waits for room.
    fn watch(&mut self, ops: &mut EventOps) {
        let Some(source) = &mut self.source else { return };
        let wanted = self.waiting.is_empty();
        let events = Events::new(&source.file, EventSet::IN);
        if wanted && !source.watched {
            match ops.add(events) {
                Ok(()) => source.watched = true,
                Err(_) => self.read(ops),
            }
        } else if !wanted && source.watched {
            let _ = ops.remove(events);
            source.watched = false;
        }
    }

    /// Reads once and gives the guest what is for it.
    fn read(&mut self, ops: &mut EventOps) {
        let Some(source) = &mut self.source else { return };
        let mut keys = [0; 4096];
        match source.file.read(&mut keys) {
            Ok(count) if count > 0 => {
                let commands = self.escapes.filter(&keys[..count], &mut self.waiting, Command::of);
                commands.into_iter().for_each(|command| self.obey(command));
                self.feed(ops);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The end of input, or a terminal that went away.
            _ => {
                if source.watched {
                    let _ = ops.remove(Events::new(&source.file, EventSet::IN));
                }
                self.source = None;
                if let Some((_, client)) = &self.listener {
                    *lock(client) = None;
                }
            }
        }
    }

    fn feed(&mut self, ops: &mut EventOps) {
        let taken = self.serial.input(&self.waiting);
        self.waiting.drain(..taken);
        self.watch(ops);
    }

    fn obey(&self, command: Command) {
        match command {
            Command::End => self.outbox.send(Message::Terminate { force: true }),
            Command::PowerButton => self.outbox.send(Message::Terminate { force: false }),
            Command::Help => self.serial.tell(HELP),
        }
    }

    /// Takes a new client; an older one is let go.
    fn accept(&mut self, ops: &mut EventOps) {
        let Some((listener, client)) = &self.listener else { return };
        let accepted = listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok((OwnedFd::from(stream.try_clone()?), stream))
        });
        let (fd, stream): (OwnedFd, UnixStream) = match accepted {
            Ok(pair) => pair,
            Err(error) => return error!("cannot accept a client of the console: {error}"),
        };
        if let Some(old) = self.source.take().filter(|old| old.watched) {
            let _ = ops.remove(Events::new(&old.file, EventSet::IN));
        }
        *lock(client) = Some(stream);
        self.source = Some(Source { file: fd.into(), watched: false });
        self.watch(ops);
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps) {
        let listener = self.listener.as_ref().map(|(listener, _)| Events::new(listener, EventSet::IN));
        for events in [Some(Events::new(&self.drained, EventSet::IN)), listener].into_iter().flatten() {
            if let Err(error) = ops.add(events) {
                error!("cannot watch the console: {error}");
            }
        }
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.drained.as_raw_fd() {
            let _ = self.drained.read();
            if !self.waiting.is_empty() {
                self.feed(ops);
            }
        } else if self.listener.as_ref().is_some_and(|(listener, _)| listener.as_raw_fd() == events.fd()) {
            self.accept(ops);
        } else {
            self.read(ops);
        }
    }
}
