//! The command of an image: whom it runs as, with what environment and streams; and the agent beside it (Docker's `run`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use agent::accounts;
use agent::container::Container;

use super::modules::Modules;
use super::{complain, root, watch};
use crate::exec::Defaults;
use crate::process::{self, Command, Fork};
use crate::sys::{self, Errno, Fd, Result, call, nr, open};
use crate::tree;

const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

const TCGETS: usize = 0x5401;
const TCSETS: usize = 0x5402;
const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;

/// What a command may open: at first, and if it asks for more.
const OPEN_FILES: [u64; 2] = [1024, 524_288];

/// A refusal: the status of the machine, and why.
type Refusal = (u8, String);

/// What the command gets as input, output and error output, and what is left to us of it.
pub struct Streams {
    theirs: [Fd; 3],
    has_terminal: bool,
    relay: Option<Relay>,
}

/// What comes out of the command and goes to the console.
pub struct Relay {
    /// Output and error output, until they end.
    pub sources: [Option<Fd>; 2],
    /// Where both go.
    pub console: Fd,
}

/// Makes ready all that the command needs.
pub fn prepare(container: &Container) -> core::result::Result<(Command, Streams), Refusal> {
    if container.argv.is_empty() {
        return Err((NOT_FOUND, "the image says no command: say one".into()));
    }
    let file = |path| sys::read_file(path).unwrap_or_default();
    let user = if container.user.is_empty() { "0" } else { &container.user };
    let account = accounts::find(user, &file("/etc/passwd"), &file("/etc/group"));
    let account =
        account.ok_or_else(|| (NOT_RUN, format!("the image has no user or group as in `{user}`")))?;
    root::make_directories(&container.directory).map_err(|error| {
        (NOT_RUN, format!("cannot make the working directory {}: {error}", container.directory))
    })?;
    let mut env = container.env.clone();
    let mut default = |name: &str, value: &str| {
        let is_set = |pair: &String| pair.split('=').next() == Some(name);
        if !env.iter().any(is_set) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", process::PATH);
    default("HOSTNAME", &container.hostname);
    default("HOME", &account.home);
    if container.tty {
        default("TERM", "xterm");
    }
    let streams =
        Streams::open(container).map_err(|error| (NOT_RUN, format!("cannot open the console: {error}")))?;
    let command = Command {
        argv: container.argv.clone(),
        env,
        directory: container.directory.clone(),
        account: Some(account),
    };
    Ok((command, streams))
}

impl Streams {
    fn open(container: &Container) -> Result<Self> {
        let open = |path: &str| Fd::open(path, open::READ_WRITE | open::NO_TERMINAL, 0);
        // The terminal itself: /dev/console can control no processes.
        let active = sys::read_file("/sys/class/tty/console/active").unwrap_or_default();
        let active = active.split_whitespace().last().map(|name| format!("/dev/{name}"));
        let console = || active.as_deref().map_or(Err(Errno::NOENT), open).or_else(|_| open("/dev/console"));
        if container.tty {
            let terminal = console()?;
            if let Some((rows, columns)) = container.size {
                let mut size = [rows, columns, 0, 0];
                // SAFETY: the kernel reads `struct winsize`, four numbers.
                let _ = unsafe { sys::ioctl(terminal.0, TIOCSWINSZ, &mut size) };
            }
            return Ok(Streams {
                theirs: [console()?, console()?, terminal],
                has_terminal: true,
                relay: None,
            });
        }
        // Bytes reach the host as they are.
        let out = console()?;
        make_raw(&out);
        let input = if container.stdin { console()? } else { Fd::open("/dev/null", open::READ, 0)? };
        let (output, their_output) = sys::pipe()?;
        let (error, their_error) = sys::pipe()?;
        output.set_nonblocking()?;
        error.set_nonblocking()?;
        Ok(Streams {
            theirs: [input, their_output, their_error],
            has_terminal: false,
            relay: Some(Relay { sources: [Some(output), Some(error)], console: out }),
        })
    }

    /// Gives up what is the command's.
    pub fn into_relay(self) -> Option<Relay> {
        self.relay
    }
}

/// The terminal changes nothing and shows nothing of what is typed (`termios(3)`, cfmakeraw).
fn make_raw(terminal: &Fd) {
    // `struct termios` of the kernel: flags for input, output, control, local, then 20 bytes.
    let mut settings = [0_u32; 9];
    // SAFETY: the kernel writes 36 bytes.
    if unsafe { sys::ioctl(terminal.0, TCGETS, &mut settings) }.is_ok() {
        settings[0] &= !0o2753;
        settings[1] &= !1;
        settings[3] &= !0o100113;
        // SAFETY: the kernel reads 36 bytes.
        let _ = unsafe { sys::ioctl(terminal.0, TCSETS, &mut settings) };
    }
}

/// Starts the command and returns its process.
pub fn start(command: &Command, streams: &Streams) -> Result<u32> {
    match process::fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            watch::release_signals();
            let _ = sys::plain(nr::SETSID, [0; 3]);
            if streams.has_terminal {
                // SAFETY: the request looks at the number, which is no address.
                let _ = unsafe { call(nr::IOCTL, [streams.theirs[0].0 as usize, TIOCSCTTY, 1, 0, 0, 0]) };
            }
            for (number, stream) in streams.theirs.iter().enumerate() {
                let _ = sys::plain(nr::DUP2, [stream.0 as usize, number, 0]);
            }
            limit_open_files();
            let error = command.execute();
            complain(&format!("cannot run {}: {error}", command.argv[0]));
            sys::exit(if error == Errno::NOENT { NOT_FOUND } else { NOT_RUN })
        }
    }
}

fn limit_open_files() {
    const RLIMIT_NOFILE: usize = 7;
    // SAFETY: the kernel reads two numbers.
    let _ = unsafe { call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, OPEN_FILES.as_ptr() as usize, 0, 0, 0]) };
}

/// Starts the agent, which first loads what had time until now. Its commands are in the same container.
pub fn start_agent(modules: Modules, container: &Container) {
    if let Ok(Fork::Child) = process::fork() {
        watch::release_signals();
        let _ = sys::plain(nr::SETSID, [0; 3]);
        modules.finish();
        let Container { env, user, directory, hostname, .. } = container;
        let mut env = env.clone();
        env.insert(0, format!("HOSTNAME={hostname}"));
        let (directory, user) = (directory.clone(), user.clone());
        crate::listen_at_vsock(&Defaults { env, directory, user, init_is_ours: true })
    }
}

/// Becomes another init; returns only if there is none.
pub fn become_init(program: &str) -> core::result::Result<(), Errno> {
    if !tree::exists(program) {
        return Err(Errno::NOENT);
    }
    let command = Command {
        argv: Vec::from([program.to_string()]),
        env: ["HOME=/".into(), "TERM=linux".into(), format!("PATH={}", process::PATH)].into(),
        directory: String::new(),
        account: None,
    };
    let error = command.execute();
    complain(&format!("cannot run {program}: {error}"));
    Err(error)
}
