//! Commands in the guest, with their streams on one connection, with or without a terminal of their own (`pty(7)`).
//!
//! ```text
//!   host ── input ──► socket ── kept until it is taken ──► pipe or terminal ──► command
//!        ◄─ output ──                                   ◄── pipes or terminal ──┘
//! ```
//!
//! At most one frame of input is kept: while the command does not read, nothing more is read from the host.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use agent::accounts::{self, Account};
use agent::json::{self, Value};

use crate::process::{self, Command, End, Fork};
use crate::protocol::{Channel, HEAD, Kind, LONGEST_PART, Refusal};
use crate::sys::{self, Errno, Fd, Poll, Result, nr, open};

const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCGPTPEER: usize = 0x5441;
const TIOCSPTLCK: usize = 0x4004_5431;

/// What stands for the end of input on a terminal: Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// A command that runs.
struct Running {
    pid: u32,
    process: Fd,
    input: Option<Fd>,
    output: Option<Fd>,
    error: Option<Fd>,
    has_terminal: bool,
}

/// What commands have that say nothing else: that of the container whose machine this is.
#[derive(Default)]
pub struct Defaults {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where they run.
    pub directory: String,
    /// Whom they run as; empty for root.
    pub user: String,
    /// The init of the machine is this program.
    pub init_is_ours: bool,
}

/// Runs a command and serves its streams. The connection ends with it.
pub fn run(channel: &Channel, request: &Value, defaults: &Defaults) -> Result {
    let running = match command(request, defaults).and_then(|command| start(&command, request)) {
        Ok(running) => running,
        Err(refusal) => return channel.answer(Err(refusal)),
    };
    let pid = running.pid;
    let relayed = channel
        .answer(Ok(json::object([("pid", Value::Number(pid.into()))])))
        .and_then(|()| Relay { channel, running, kept: Vec::new(), closing: false }.run());
    if relayed.is_err() {
        process::kill(pid, true, process::SIGHUP);
    }
    Err(Errno::PIPE)
}

/// The command that is asked for.
fn command(request: &Value, defaults: &Defaults) -> core::result::Result<Command, Refusal> {
    let argv = request.get("argv").and_then(Value::as_list).unwrap_or_default();
    let argv: Option<Vec<String>> = argv.iter().map(|word| word.as_text().map(String::from)).collect();
    let argv = argv.filter(|argv| argv.first().is_some_and(|program| !program.is_empty()));
    let argv = argv.ok_or_else(|| Refusal::new("`argv` is a list of texts, the first of them not empty"))?;
    let user = match request.get("user") {
        Some(user) => Some(user.as_text().unwrap_or_default()),
        None => Some(&defaults.user[..]).filter(|user| !user.is_empty()),
    };
    let account = user.map(account).transpose()?;
    let mut env = Vec::new();
    let mut set = |name: &str, value: &str| {
        env.retain(|pair: &String| !pair.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        env.push(format!("{name}={value}"));
    };
    set("PATH", process::PATH);
    if has_terminal(request) {
        set("TERM", "xterm");
    }
    let root = account.is_none().then(|| self::account("0").ok()).flatten();
    if let Some(account) = account.as_ref().or(root.as_ref()) {
        set("HOME", &account.home);
        set("SHELL", &account.shell);
        account.name.iter().for_each(|name| set("USER", name));
    }
    for (name, value) in defaults.env.iter().filter_map(|pair| pair.split_once('=')) {
        set(name, value);
    }
    if let Some(Value::Object(pairs)) = request.get("env") {
        for (name, value) in pairs {
            let value = value.as_text().filter(|_| !name.is_empty() && !name.contains('='));
            set(name, value.ok_or_else(|| Refusal::new("`env` has names and texts"))?);
        }
    }
    let directory = request.get("cwd").and_then(Value::as_text).unwrap_or(&defaults.directory).into();
    Ok(Command { argv, env, directory, account })
}

fn account(user: &str) -> core::result::Result<Account, Refusal> {
    let file = |path| sys::read_file(path).unwrap_or_default();
    accounts::find(user, &file("/etc/passwd"), &file("/etc/group"))
        .ok_or_else(|| Refusal::new(&format!("There is no user `{user}` in the guest")))
}

fn has_terminal(request: &Value) -> bool {
    request.get("tty").and_then(Value::as_bool).unwrap_or(false)
}

/// What a command gets as its standard input, output and error output, and what is left to us of them.
struct Streams {
    theirs: [Fd; 3],
    input: Fd,
    output: Fd,
    error: Option<Fd>,
}

impl Streams {
    fn pipes() -> Result<Self> {
        let (theirs_in, input) = sys::pipe()?;
        let (output, theirs_out) = sys::pipe()?;
        let (error, theirs_error) = sys::pipe()?;
        Ok(Streams { theirs: [theirs_in, theirs_out, theirs_error], input, output, error: Some(error) })
    }

    fn terminal(request: &Value) -> Result<Self> {
        let again = |fd: &Fd| {
            const DUPLICATE_CLOEXEC: usize = 1030;
            sys::plain(nr::FCNTL, [fd.0 as usize, DUPLICATE_CLOEXEC, 3]).map(|fd| Fd(fd as i32))
        };
        let ours = Fd::open("/dev/ptmx", open::READ_WRITE | open::NO_TERMINAL, 0)?;
        // SAFETY: the kernel reads one number.
        unsafe { sys::ioctl(ours.0, TIOCSPTLCK, &mut 0_i32) }?;
        let flags = open::READ_WRITE | open::NO_TERMINAL | open::CLOEXEC;
        let theirs = Fd(sys::plain(nr::IOCTL, [ours.0 as usize, TIOCGPTPEER, flags])? as i32);
        resize(&ours, request)?;
        Ok(Streams {
            theirs: [again(&theirs)?, again(&theirs)?, theirs],
            input: again(&ours)?,
            output: ours,
            error: None,
        })
    }
}

fn resize(terminal: &Fd, request: &Value) -> Result {
    let number = |name| request.get(name).and_then(Value::as_number::<u16>);
    if let (Some(rows), Some(columns)) = (number("rows"), number("cols")) {
        // SAFETY: the kernel reads a `struct winsize`: four 16-bit numbers.
        unsafe { sys::ioctl(terminal.0, TIOCSWINSZ, &mut [rows, columns, 0, 0]) }?;
    }
    Ok(())
}

fn start(command: &Command, request: &Value) -> core::result::Result<Running, Refusal> {
    let has_terminal = has_terminal(request);
    let streams = if has_terminal { Streams::terminal(request) } else { Streams::pipes() };
    let streams = streams.map_err(|error| Refusal::by(error, "make the command's streams"))?;
    let failed = |error| Refusal::by(error, &format!("run {}", command.argv[0]));
    // What the child writes there is why it could not start; it is closed when it could.
    let (news, tell) = sys::pipe().map_err(failed)?;
    let pid = match process::fork().map_err(failed)? {
        Fork::Child => {
            let error = become_command(command, &streams, has_terminal);
            let _ = tell.write_all(&error.0.to_ne_bytes());
            sys::exit(127)
        }
        Fork::Parent(pid) => pid,
    };
    drop((tell, streams.theirs));
    let mut errno = [0; 2];
    if sys::read(news.0, &mut errno) == Ok(2) {
        let _ = process::wait(pid);
        return Err(failed(Errno(u16::from_ne_bytes(errno))));
    }
    let ready = [Some(&streams.input), Some(&streams.output), streams.error.as_ref()];
    let process = process::watch(pid).and_then(|process| {
        ready.iter().flatten().try_for_each(|fd| fd.set_nonblocking())?;
        Ok(process)
    });
    let process = process.map_err(|error| {
        process::kill(pid, true, process::SIGKILL);
        failed(error)
    })?;
    let (input, output) = (Some(streams.input), Some(streams.output));
    Ok(Running { pid, process, input, output, error: streams.error, has_terminal })
}

/// In the child: everything but coming back.
fn become_command(command: &Command, streams: &Streams, has_terminal: bool) -> Errno {
    process::reset_signals();
    let prepare = || -> Result {
        sys::plain(nr::SETSID, [0; 3])?;
        if has_terminal {
            sys::plain(nr::IOCTL, [streams.theirs[0].0 as usize, TIOCSCTTY, 0])?;
        }
        for (number, fd) in streams.theirs.iter().enumerate() {
            sys::plain(nr::DUP2, [fd.0 as usize, number, 0])?;
        }
        Ok(())
    };
    match prepare() {
        Ok(()) => command.execute(),
        Err(error) => error,
    }
}

/// Moves bytes while the command runs.
struct Relay<'a> {
    channel: &'a Channel,
    running: Running,
    /// Input that the command has not taken.
    kept: Vec<u8>,
    /// Input ends when that is taken.
    closing: bool,
}

impl Relay<'_> {
    fn run(mut self) -> Result {
        let mut frame = vec![0; HEAD + LONGEST_PART];
        let mut payload = Vec::new();
        loop {
            let number = |fd: &Option<Fd>| fd.as_ref().map_or(-1, |fd| fd.0);
            let is_full = !self.kept.is_empty() || self.closing;
            let mut polls = [
                Poll::new(self.channel.fd(), if is_full { 0 } else { Poll::IN }),
                Poll::new(self.running.process.0, Poll::IN),
                Poll::new(number(&self.running.output), Poll::IN),
                Poll::new(number(&self.running.error), Poll::IN),
                Poll::new(if is_full { number(&self.running.input) } else { -1 }, Poll::OUT),
            ];
            match sys::poll(&mut polls, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let [socket, process, output, error, input] = polls.map(|poll| poll.found);
            if output != 0 {
                self.pass_on(Kind::Output, &mut frame)?;
            }
            if error != 0 {
                self.pass_on(Kind::ErrorOutput, &mut frame)?;
            }
            if process != 0 {
                return self.finish(&mut frame);
            }
            if input != 0 {
                self.feed();
            }
            if socket & Poll::IN != 0 {
                self.hear(&mut payload)?;
            } else if socket & Poll::OVER != 0 {
                return Err(Errno::PIPE);
            }
        }
    }

    /// Takes one frame of the host.
    fn hear(&mut self, payload: &mut Vec<u8>) -> Result {
        match self.channel.receive(payload)?.ok_or(Errno::PIPE)? {
            Kind::Input if self.running.input.is_none() => {}
            Kind::Input => {
                if payload.is_empty() {
                    self.closing = true;
                    if self.running.has_terminal {
                        payload.push(END_OF_TRANSMISSION);
                    }
                }
                core::mem::swap(&mut self.kept, payload);
                self.feed();
            }
            Kind::Message => {
                let message = Value::parse(payload).ok_or(Errno::INVAL)?;
                match message.get("op").and_then(Value::as_text) {
                    Some("resize") => {
                        if let Some(terminal) =
                            self.running.output.as_ref().filter(|_| self.running.has_terminal)
                        {
                            let _ = resize(terminal, &message);
                        }
                    }
                    Some("signal") => {
                        let number = message.get("number").and_then(Value::as_number::<u32>);
                        number.into_iter().for_each(|number| process::kill(self.running.pid, true, number));
                    }
                    _ => {}
                }
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// Gives input to the command, as much as it takes.
    fn feed(&mut self) {
        let Some(input) = &self.running.input else { return };
        while !self.kept.is_empty() {
            match sys::write(input.0, &self.kept) {
                Ok(taken) => drop(self.kept.drain(..taken)),
                Err(Errno::AGAIN) => return,
                // It does not want any.
                Err(_) => {
                    self.kept.clear();
                    self.closing = true;
                }
            }
        }
        if self.closing {
            self.running.input = None;
            self.closing = false;
        }
    }

    /// Sends what the command says. Whether there may be more at once.
    fn pass_on(&mut self, kind: Kind, frame: &mut [u8]) -> Result<bool> {
        let stream = if kind == Kind::Output { &mut self.running.output } else { &mut self.running.error };
        let Some(fd) = stream else { return Ok(false) };
        match sys::read(fd.0, &mut frame[HEAD..]) {
            Err(Errno::AGAIN) => Ok(false),
            Ok(got @ 1..) => self.channel.send_frame(kind, &mut frame[..HEAD + got]).map(|()| true),
            // The end; a terminal says so with an error.
            _ => {
                *stream = None;
                Ok(false)
            }
        }
    }

    /// The command has ended: sends what it has left in the pipes, and how it ended. Whoever still has the other end of
    /// them is not waited for.
    fn finish(mut self, frame: &mut [u8]) -> Result {
        let end = process::wait(self.running.pid)?;
        while self.pass_on(Kind::Output, frame)? {}
        while self.pass_on(Kind::ErrorOutput, frame)? {}
        let end = match end {
            End::Status(status) => ("status", Value::Number(status.into())),
            End::Signal(signal) => ("signal", Value::Number(signal.into())),
        };
        self.channel.send(&json::object([("exit", json::object([end]))]))
    }
}
