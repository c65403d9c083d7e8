//! The init of a machine: from the kernel's first process in the initramfs to the command of a container image, or to the
//! init of a root disk, and to the end of the machine.
//!
//! ```text
//!   kernel ─► /init ─ modules ─ root disk ─┬─ /rvmm/process.json ─ mounts ─ network ─┬─ fork ─► the command
//!                                          │                                         ├─ fork ─► the agent: more modules, vsock
//!                                          │                                         └─ watch: ends, signals, power button
//!                                          │                                               └─► status to its port, power off
//!                                          └─ none: root=, rootfstype=, ro, rw, init= of the kernel's command line
//! ```
//!
//! Statuses are Docker's: 127 if there is no such command, 126 if it does not run, 128 and the number of the signal that
//! ended it; 125 if the machine could not be set up for it.

mod command;
mod end;
mod etc;
mod modules;
mod network;
mod root;
mod watch;

use alloc::format;
use alloc::string::String;

use agent::container::{Container, Mount};

use crate::sys::{self, nr};
use modules::Modules;

/// Where the host puts what is to be run.
const PROCESS: &str = "/rvmm/process.json";

/// Status if nothing can be run.
const NOT_SET_UP: u8 = 125;

/// Whether this process is to be the init: the kernel has started it.
pub fn is_wanted() -> bool {
    sys::plain(nr::GETPID, [0; 3]) == Ok(1)
}

/// Does all of it.
pub fn run() -> ! {
    let _ = sys::plain(nr::UMASK, [0o022, 0, 0]);
    root::kernel_file_systems("");
    let words = sys::read_file("/proc/cmdline").unwrap_or_default();
    let stamps = words.split_whitespace().any(|word| word.starts_with("rvmm.stamp"));
    end::stamp(stamps, 1);
    match sys::read_file(PROCESS) {
        Ok(document) => match Container::parse(document.as_bytes()) {
            Ok(container) => contain(&container, stamps),
            Err(reason) => fail(&format!("{PROCESS} cannot be understood: {reason}")),
        },
        Err(_) => hand_over(&words),
    }
}

/// Runs a command in a root file system of its own.
fn contain(container: &Container, stamps: bool) -> ! {
    watch::hold_signals();
    let modules = Modules::load(core::iter::once(&container.root).chain(&container.mounts));
    let enter = || -> Result<(), String> {
        root::enter(&container.root)?;
        root::furnish(container.root.read_only);
        root::mount_all(&container.mounts)
    };
    if let Err(reason) = enter() {
        fail(&reason);
    }
    let names = network::start(&container.network, &container.hostname);
    etc::write(&container.hostname, &names);
    network::keep(names.lease, &container.hostname);
    if container.root.read_only {
        root::seal();
    }
    let (command, streams) = match command::prepare(container) {
        Ok(prepared) => prepared,
        Err((status, reason)) => {
            complain(&reason);
            end::power_off(status, &container.mounts)
        }
    };
    end::stamp(stamps, 2);
    let child = match command::start(&command, &streams) {
        Ok(child) => child,
        Err(error) => fail(&format!("cannot start a process: {error}")),
    };
    let relay = streams.into_relay();
    command::start_agent(modules, container);
    let status = watch::until_it_ends(child, relay, container);
    end::power_off(status, &container.mounts)
}

/// Leaves the machine to the init of its root disk, as the kernel's command line says.
fn hand_over(words: &str) -> ! {
    let value = |name: &str| {
        let of = |word: &str| word.strip_prefix(name)?.strip_prefix('=').map(String::from);
        words.split_whitespace().rev().find_map(of)
    };
    let source = value("root").filter(|source| !source.is_empty()).unwrap_or_else(|| "/dev/vda".into());
    let is_access = |word: &&str| ["ro", "rw"].contains(word);
    let mount = Mount {
        source,
        target: "/".into(),
        kind: value("rootfstype").unwrap_or_else(|| "ext4".into()),
        read_only: words.split_whitespace().rev().find(is_access) == Some("ro"),
    };
    Modules::load_all(&mount);
    if let Err(reason) = root::enter(&mount) {
        fail(&reason);
    }
    let wanted = value("init");
    let usual = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"].map(String::from);
    for program in wanted.into_iter().chain(usual) {
        if command::become_init(&program).is_ok() {
            break;
        }
    }
    fail(&format!("{} has no init: say init=PATH on the kernel's command line", mount.source))
}

/// Says on the console what is wrong.
fn complain(text: &str) {
    let _ = sys::write(2, format!("rvmm-init: {text}\n").as_bytes());
}

/// Says why nothing can be run, and ends the machine.
fn fail(reason: &str) -> ! {
    complain(reason);
    end::power_off(NOT_SET_UP, &[])
}
