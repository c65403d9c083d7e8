//! The agent of rvmm: a small program in the guest that does for the host what only the guest can do.
//!
//! ```text
//!   rvmm-agent                  listens at vsock port 1023 (protocol.rs says what it understands)
//!   rvmm-agent --unix PATH      listens at a unix socket instead
//!
//!   as the first process        is the init of a machine (init/mod.rs), which starts the agent in time
//!
//!   main ── accept ── fork ──► serve: one connection, one request after the other ──► its commands
//! ```

#![no_std]
#![no_main]

extern crate alloc;

mod exec;
mod files;
mod freeze;
mod identity;
mod init;
mod process;
mod protocol;
mod runtime;
mod socket;
mod sys;
mod tree;

use alloc::vec::Vec;

use agent::json::{self, Value};

use process::{Command, Disposition, Fork};
use protocol::{Answer, Channel, Refusal};
use socket::Listener;
use sys::{Clock, Errno, Fd, Result, nr};

/// Called by the entry code.
fn main(arguments: &[*const u8]) -> ! {
    if init::is_wanted() {
        init::run()
    }
    // Descriptors 0 to 2 are taken, so that no other file gets these numbers.
    while let Ok(null) = Fd::open("/dev/null", sys::open::READ_WRITE, 0) {
        if null.0 > 2 {
            break;
        }
        core::mem::forget(null);
    }
    let listener = match arguments {
        [_] => Listener::vsock(protocol::PORT),
        [_, option, path] if text(option) == Some("--unix") => {
            text(path).ok_or(Errno::INVAL).and_then(Listener::unix)
        }
        _ => {
            sys::complain("usage: rvmm-agent [--unix PATH]");
            sys::exit(2)
        }
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            sys::complain(&alloc::format!("cannot listen: {error}"));
            sys::exit(1)
        }
    };
    listen(listener, &exec::Defaults::default())
}

/// The agent of a machine whose init this program is.
fn listen_at_vsock(defaults: &exec::Defaults) -> ! {
    match Listener::vsock(protocol::PORT) {
        Ok(listener) => listen(listener, defaults),
        // The machine has no vsock.
        Err(_) => sys::exit(0),
    }
}

/// Serves all that come.
fn listen(listener: Listener, defaults: &exec::Defaults) -> ! {
    // Children that nobody waits for leave no trace; whoever closes a socket or a terminal does not end this process.
    process::set_signal(process::SIGCHLD, Disposition::Ignore);
    process::set_signal(process::SIGPIPE, Disposition::Ignore);
    process::set_signal(process::SIGHUP, Disposition::Ignore);
    loop {
        // A connection that ends before it is accepted is no reason to end, nor is a shortage that may pass.
        match listener.accept() {
            Ok(Some(client)) => {
                if let Ok(Fork::Child) = process::fork() {
                    drop(listener);
                    serve(client, defaults);
                    sys::exit(0)
                }
            }
            Ok(None) => {}
            Err(_) => {
                let _ = sys::poll(&mut [], Some(10));
            }
        }
    }
}

fn text(argument: &*const u8) -> Option<&'static str> {
    // SAFETY: arguments are texts with an end, and stay for ever.
    unsafe { core::ffi::CStr::from_ptr(argument.cast()) }.to_str().ok()
}

/// Serves one connection.
fn serve(client: Fd, defaults: &exec::Defaults) {
    process::set_signal(process::SIGCHLD, Disposition::Default);
    let channel = Channel::new(client);
    let mut payload = Vec::new();
    let _ = channel.greet();
    while let Ok(Some(request)) = channel.receive_message(&mut payload) {
        let go_on = match request.get("op").and_then(Value::as_text) {
            Some("exec") => exec::run(&channel, &request, defaults),
            Some("freeze") => freeze::run(&channel, &request),
            Some("read") => files::read(&channel, &request),
            Some("write") => files::write(&channel, &request),
            Some("shutdown") => return shutdown(&channel, &request, defaults),
            op => channel.answer(simple(op.unwrap_or_default(), &request)),
        };
        if go_on.is_err() {
            return;
        }
    }
}

/// A request that is one answer.
fn simple(op: &str, request: &Value) -> Answer {
    match op {
        "ping" => Ok(json::object([("time_ns", Value::Number(sys::now(Clock::Realtime).into()))])),
        "identity" => Ok(identity::take(request)),
        "sync" => {
            let _ = sys::plain(nr::SYNC, [0; 3]);
            Ok(protocol::done())
        }
        "thaw" => Err(Refusal::new("Nothing is frozen by this connection")),
        _ => Err(Refusal::new("This agent does not know the operation")),
    }
}

/// Ends the machine: the init system does it, or else the kernel.
fn shutdown(channel: &Channel, request: &Value, defaults: &exec::Defaults) {
    const MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];
    let (program, command) = match request.get("how").and_then(Value::as_text) {
        None | Some("poweroff") => ("poweroff", 0x4321_fedc),
        Some("reboot") => ("reboot", 0x0123_4567),
        Some(_) => {
            let _ = channel.answer(Err(Refusal::new("`how` is poweroff or reboot")));
            return;
        }
    };
    let _ = channel.answer(Ok(protocol::done()));
    if defaults.init_is_ours && program == "poweroff" {
        // It asks its command to end, and tells the status.
        return process::kill(1, false, process::SIGTERM);
    }
    let command_line = Command {
        argv: [program].map(Into::into).into(),
        env: [alloc::format!("PATH={}", process::PATH)].into(),
        directory: Default::default(),
        account: None,
    };
    if !matches!(command_line.run(10_000), Ok(process::End::Status(0))) {
        let _ = sys::plain(nr::SYNC, [0; 3]);
        let _: Result<usize> = sys::plain(nr::REBOOT, [MAGIC[0], MAGIC[1], command]);
    }
}
