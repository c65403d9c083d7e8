//! Every way in which a machine ends, with its exit status and the cause that `--json` names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::common::bare::{end, guest, kernel};
use crate::common::machine::{Machine, Running, all_gone};
use crate::common::pty::Pty;
use crate::common::{eventually, host};
use crate::need;

/// A guest that does not hear its power button.
fn deaf() -> Machine {
    guest("hello end=hlt")
}

fn running(machine: Machine) -> Running {
    let running = machine.start();
    running.says("OK hello");
    running
}

#[test]
fn power_off() {
    need!(host::kvm());
    end("poweroff").run().powered_off();
}

#[test]
fn the_status_of_the_guests_command_is_that_of_rvmm() {
    need!(host::kvm());
    for status in [0, 3, 126, 255] {
        let ended = guest(&format!("hello status={status}")).run();
        ended.ended(status, "power-off");
        assert_eq!(ended.report()["detail"], status);
    }
    // What is not followed by the end of the machine is forgotten, and other ends have statuses of their own.
    guest("hello status=9 end=reset").arg("--no-reboot").run().ended(0, "reboot");
    guest("hello status=9 end=panic").run().ended(127, "panic");
}

#[test]
fn a_restart_ends_the_machine_if_it_is_to() {
    need!(host::kvm());
    for way in ["reset", "acpi-reset"] {
        end(way).arg("--no-reboot").run().ended(0, "reboot");
    }
}

#[test]
fn a_restart_is_done_in_place() {
    need!(host::kvm());
    for way in ["reset", "acpi-reset"] {
        let machine = guest(&format!("hello end={way}")).option("--stop-timeout", "0").start();
        machine.says_times("OK hello", 3);
        machine.terminate();
        machine.finish().ended(130, "stopped");
    }
}

#[test]
fn panic() {
    need!(host::kvm());
    end("panic").run().ended(127, "panic");
}

#[test]
fn a_reset_behind_the_last_words_of_a_kernel_is_a_panic() {
    need!(host::kvm());
    for way in ["reset", "acpi-reset", "triple"] {
        let machine = || guest(&format!("hello last-words end={way}"));
        machine().run().ended(127, "panic").said("Kernel panic - not syncing");
        machine().arg("--no-reboot").run().ended(127, "panic");
    }
    // It is the console that is listened to.
    guest("hello last-words end=reset debugcon").arg("--no-reboot").run().ended(0, "reboot");
}

#[test]
fn a_guest_that_only_ever_restarts_is_ended() {
    need!(host::kvm());
    end("reset").run().ended(127, "silent");
    let machine = Machine::rvmm().option("--kernel", kernel()).option("--net", "none");
    let ended = machine.words("test=exit end=acpi-reset").run();
    assert_eq!(ended.status, 127, "{ended}");
    assert!(ended.err.contains("earlyprintk=ttyS0"), "{ended}");
}

/// One that uses a device may do something else each time, whether it says so or not, and a word is enough on either console.
#[test]
fn a_guest_that_does_something_may_restart_as_often_as_it_likes() {
    need!(host::kvm());
    for test in ["rng mute end=reset", "hello end=reset", "hello debugcon end=reset"] {
        let machine = guest(test).option("--stop-timeout", "0").option("--log-level", "info").start();
        machine.complains_times("the guest restarts", 5);
        machine.terminate();
        machine.finish().ended(130, "stopped");
    }
}

#[test]
fn the_last_words_of_a_kernel_alone_end_nothing() {
    need!(host::kvm());
    guest("hello last-words").run().powered_off().said("Kernel panic - not syncing");
    let machine = guest("hello last-words end=hlt").option("--stop-timeout", "0").start();
    machine.says("Kernel panic - not syncing: not at all\n");
    machine.terminate();
    machine.finish().ended(130, "stopped");
}

#[test]
fn triple_fault() {
    need!(host::kvm());
    end("triple").run().ended(128, "triple-fault");
}

#[test]
fn what_kvm_cannot_go_on_with_is_an_internal_error() {
    need!(host::kvm());
    let ended = end("nowhere").run();
    ended.ended(126, "failed");
    assert!(ended.detail().contains("vCPU 0"), "{ended}");
}

#[test]
fn people_are_told_in_words() {
    need!(host::kvm());
    for (way, status, words) in [
        ("poweroff", 0, ""),
        ("panic", 127, "rvmm: the guest's kernel panicked\n"),
        ("triple", 128, "rvmm: the guest crashed with a triple fault\n"),
    ] {
        let machine = Machine::rvmm().option("--kernel", kernel()).option("--net", "none");
        let ended = machine.words(format!("test=exit end={way}")).run();
        assert_eq!((ended.status, ended.err.as_str()), (status, words), "{way}");
    }
}

#[test]
fn sigterm_stops_a_guest_that_does_not_listen() {
    need!(host::kvm());
    for end in ["hlt", "spin"] {
        let machine = running(guest(&format!("hello end={end}")).cpus(2).option("--stop-timeout", "1"));
        machine.terminate();
        machine.finish().ended(130, "stopped");
    }
}

/// Who waits for a guest is told why, and a guest that switches itself off after all is told from one that does not.
#[test]
fn a_guest_that_takes_its_time_is_waited_for_and_not_in_silence() {
    need!(host::kvm());
    let machine = guest("echo").option("--name", "one").option("--stop-timeout", "100000");
    let mut machine = machine.stdin(Stdio::piped()).start();
    assert!(eventually(|| machine.command(&["ps", "-q"]).out.contains("one")));
    let stop = Machine::command_line(&["stop", "--json", "one"]).beside(&machine).start();
    machine.complains("it is stopped by force in 99999 s, or at once by another signal");
    machine.types("q");
    let told: serde_json::Value = serde_json::from_str(&stop.finish().out).expect("JSON");
    assert_eq!((&told[0]["done"], &told[0]["forced"]), (&true.into(), &false.into()), "{told}");
    machine.finish().powered_off();
}

#[test]
fn a_second_signal_does_not_wait() {
    need!(host::kvm());
    let machine = running(deaf().option("--stop-timeout", "100000"));
    machine.signal(libc::SIGINT);
    machine.complains("or at once by another signal");
    machine.signal(libc::SIGINT);
    machine.finish().ended(130, "stopped");
}

#[test]
fn keys_on_the_terminal_end_it() {
    need!(host::kvm());
    let mut terminal = Pty::new();
    let before = terminal.settings();
    let machine = running(deaf().stdin(terminal.program()));
    assert_ne!(terminal.settings(), before, "the terminal is raw");
    terminal.types("\x01h");
    machine.says("Ctrl-A x   end the machine");
    terminal.types("\x01x");
    machine.finish().ended(130, "stopped");
    assert_eq!(terminal.settings(), before, "the terminal is as it was");
}

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    need!(host::kvm());
    for (way, status) in [("poweroff", 0), ("panic", 127), ("triple", 128), ("nowhere", 126)] {
        let terminal = Pty::new();
        let before = terminal.settings();
        let ended = end(way).stdin(terminal.program()).run();
        assert_eq!((ended.status, terminal.settings()), (status, before), "{way}");
    }
    let terminal = Pty::new();
    let before = terminal.settings();
    let machine = running(deaf().option("--stop-timeout", "0").stdin(terminal.program()));
    machine.terminate();
    machine.finish().ended(130, "stopped");
    assert_eq!(terminal.settings(), before, "after a signal");
}

#[test]
fn every_signal_that_ends_programs_ends_it_in_good_order() {
    need!(host::kvm());
    let started = |terminal: &Pty| {
        let raw = terminal.settings();
        let machine = running(deaf().option("--stop-timeout", "0").stdin(terminal.program()));
        assert_ne!(terminal.settings(), raw, "the terminal is raw");
        machine
    };
    for signal in
        [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGPWR, libc::SIGINT]
    {
        let terminal = Pty::new();
        let before = terminal.settings();
        let machine = started(&terminal);
        machine.signal(signal);
        machine.finish().ended(130, "stopped");
        assert_eq!(terminal.settings(), before, "after signal {signal}");
    }
    // What the kernel or the C library sends to a program that is wrong ends it at once, and all the same.
    for signal in
        [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGXCPU]
    {
        let terminal = Pty::new();
        let before = terminal.settings();
        let machine = started(&terminal);
        machine.signal(signal);
        assert_eq!(machine.finish().status, -signal);
        assert_eq!(terminal.settings(), before, "after signal {signal}");
    }
}

#[test]
fn a_signal_takes_no_terminal_along_that_is_attached() {
    need!(host::kvm());
    let machine = guest("hello end=hlt").option("--console", "log").option("--name", "one").start();
    assert!(eventually(|| machine.command(&["logs", "one"]).out.contains("OK hello")));
    let terminal = Pty::new();
    let before = terminal.settings();
    let attached = Machine::command_line(&["attach", "one"]).stdin(terminal.program());
    let attached = attached.beside(&machine).start();
    assert!(eventually(|| terminal.settings() != before), "the terminal is raw");
    attached.terminate();
    assert_eq!(attached.finish().status, -libc::SIGTERM);
    assert_eq!(terminal.settings(), before, "the terminal is as it was");
}

#[test]
fn the_end_of_standard_input_is_not_the_end_of_the_machine() {
    need!(host::kvm());
    for stdin in [Stdio::null(), Stdio::piped()] {
        guest("hello").stdin(stdin).run().passed("hello");
    }
}

#[test]
fn a_killed_machine_leaves_nothing_behind() {
    need!(host::kvm());
    let disk = tempfile::NamedTempFile::new().expect("a disk");
    disk.as_file().set_len(1 << 20).expect("a disk");
    let start = |beside: Option<&Running>| {
        let machine = Machine::rvmm().arg("--json").option("--kernel", kernel()).option("--name", "one");
        let machine = match host::program("passt") {
            Ok(_) => machine.option("--net", "user"),
            Err(_) => machine.option("--net", "none"),
        };
        let machine = machine.disk(disk.path(), "").words("test=hello end=hlt");
        match beside {
            Some(other) => running(machine.beside(other)),
            None => running(machine),
        }
    };
    let bystander = running(deaf());
    let first = start(Some(&bystander));
    assert!(bystander.command(&["ps", "-q"]).out.contains("one\n"));
    let children = host::children(first.pid());
    assert_eq!(first.kill().status, -libc::SIGKILL);
    assert!(all_gone(&children), "processes that it started have ended");
    assert!(!bystander.command(&["ps", "-q"]).out.contains("one\n"), "it is not listed");

    // Its name and its disk are free.
    let second = start(Some(&bystander));
    second.kill();
}

#[test]
fn passt_gets_one_descriptor_and_no_other() {
    need!(host::kvm());
    let directory = tempfile::tempdir().expect("a directory");
    let (fake, seen) = (directory.path().join("passt"), directory.path().join("seen"));
    let list = "for fd in /proc/self/fd/*; do readlink $fd; done";
    fs::write(&fake, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{list} >{}\n", seen.display()))
        .expect("a program");
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o700)).expect("a program");
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    // Started when the guest's driver is there.
    let _machine = guest("net end=hlt").option("--net", "user").env("PATH", path).start();
    let listed = || fs::read_to_string(&seen).unwrap_or_default();
    assert!(eventually(|| listed().contains("socket:")), "{}", listed());
    assert!(!listed().contains("eventfd"), "{}", listed());
}
