//! A guest without an operating system that tests and measures a virtual machine monitor: one test per
//! boot, named on the kernel command line (README.md lists them).

#![no_std]
#![no_main]

mod apic;
mod boot;
mod cmdline;
mod cpu;
mod end;
mod interrupts;
mod memory;
mod runtime;
mod serial;
mod tests;
mod virtio;

use serial::Hex;

/// Why a test failed.
pub struct Failure {
    reason: &'static str,
    got: u64,
    wanted: u64,
}

type Result<T = ()> = core::result::Result<T, Failure>;

/// Fails with `reason` unless the two are equal.
fn check(reason: &'static str, got: impl Into<u64>, wanted: impl Into<u64>) -> Result {
    let (got, wanted) = (got.into(), wanted.into());
    if got == wanted { Ok(()) } else { Err(Failure { reason, got, wanted }) }
}

const DEFAULT_TEST: &[u8] = b"hello";

fn test_name() -> &'static [u8] {
    cmdline::value("test").unwrap_or(DEFAULT_TEST)
}

/// Called by the entry code of boot.rs, once, on the first CPU, with interrupts off. Beside the entry
/// code, and without a word of the program's own memory, so that `exit` touches as few pages as can be.
#[unsafe(link_section = ".text.boot")]
extern "C" fn main(info: u64, protocol: u32) -> ! {
    let line = boot::cmdline(info, protocol);
    // SAFETY: the address is what the VMM passed.
    match unsafe { cmdline::exit_at_once(line) } {
        Some(name) => end::by(name),
        None => test(info, protocol, line),
    }
}

#[inline(never)]
fn test(info: u64, protocol: u32, line: u64) -> ! {
    boot::remember(info, protocol);
    cmdline::remember(line);
    let [name, end] = cmdline::values(["test", "end"]);
    let name = name.unwrap_or(DEFAULT_TEST);
    if name == b"exit" {
        end::by(end.unwrap_or(b""))
    }
    serial::choose_port();
    cpu::take_tables();
    apic::mask_pics();
    match tests::find(name) {
        None => print!("FAIL ", name, ": no such test\n"),
        Some(test) => match test() {
            Ok(()) => print!("OK ", name, "\n"),
            Err(failure) => print!(
                "FAIL ",
                name,
                ": ",
                failure.reason,
                " (got ",
                Hex(failure.got),
                ", wanted ",
                Hex(failure.wanted),
                ")\n"
            ),
        },
    }
    end::end()
}
