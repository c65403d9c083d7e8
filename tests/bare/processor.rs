//! Boot protocols, CPUs, memory, ports and interrupts.

use std::path::Path;

use tempfile::TempDir;

use crate::common::bare::{guest, kernel_without_pvh};
use crate::common::machine::Machine;
use crate::common::{host, skip};
use crate::need;

/// A test of the guest passes.
fn passes(test: &str) {
    guest(test).run().passed(test);
}

#[test]
fn hello_by_both_boot_protocols() {
    need!(host::kvm(), host::program("objcopy").map(drop));
    guest("hello").run().passed("hello").said("protocol: pvh\n");
    let directory = TempDir::new().expect("a directory");
    let kernel = kernel_without_pvh(directory.path());
    for test in ["hello", "irq", "timer", "smp"] {
        let ended = Machine::new(&kernel).words(format!("test={test}")).cpus(2).run();
        ended.passed(test);
        if test == "hello" {
            ended.said("protocol: linux\n").said("rsdp: 0xe0000\n");
        }
    }
}

#[test]
fn the_command_line_arrives() {
    need!(host::kvm());
    let ended = guest("hello").words("some=word  a-b=\"c d\"").run();
    ended.passed("hello").said("pci=conf1,noearly").said("test=hello some=word  a-b=\"c d\"\n");
    let long = "x".repeat(1900);
    guest("hello").words(&*long).run().passed("hello").said(&long);
    let only = Machine::new(crate::common::bare::kernel()).option("--cmdline-only", "test=hello").run();
    only.passed("hello").said("cmdline: test=hello\n");
}

#[test]
fn milestones_are_written_with_their_times() {
    need!(host::kvm());
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("milestones");
    let milestones = |test: &str| -> Vec<(String, u64)> {
        guest(test).option("--boot-timer", &path).run().passed("stamp");
        let lines = std::fs::read_to_string(&path).expect("a file");
        let line = |line: &str| -> serde_json::Value { serde_json::from_str(line).expect("JSON") };
        lines
            .lines()
            .map(line)
            .map(|line| (line["milestone"].to_string(), line["monotonic_ns"].as_u64().expect("a time")))
            .collect()
    };
    let reached = milestones("stamp");
    let names: Vec<_> = reached.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["\"first-run\"", "\"kernel\"", "\"ready\""]);
    assert!(reached.is_sorted_by_key(|(_, time)| *time), "{reached:?}");
    // A guest that writes them for ever does not fill the host's memory.
    assert_eq!(milestones("stamp count=5000").len(), 1 + 1024);
}

#[test]
fn ports() {
    need!(host::kvm());
    passes("pio");
}

#[test]
fn addresses_without_a_device() {
    need!(host::kvm());
    passes("mmio");
}

#[test]
fn an_interrupt_from_a_device() {
    need!(host::kvm());
    passes("irq count=100");
    passes("irq apic=x");
}

#[test]
fn timers() {
    need!(host::kvm());
    passes("timer");
    passes("timer apic=x");
}

#[test]
fn user_mode() {
    need!(host::kvm());
    passes("user loops=1000000");
}

#[test]
fn registers_stay_what_they_are() {
    need!(host::kvm());
    passes("counter rounds=5");
    passes("dirty rounds=3");
}

#[test]
fn one_to_four_cpus() {
    need!(host::kvm());
    for cpus in 1..=4 {
        let test = format!("smp cpus={cpus}");
        guest(&test).cpus(cpus).run().passed(&test).said("x2apic, first cpu 0");
    }
}

/// Numbers from 255 on need x2APIC's identifiers, and an interrupt for any of them reaches no other. Each is a descriptor, of which
/// programs may have few unless they ask.
#[test]
fn three_hundred_cpus() {
    need!(host::kvm(), host::vcpus(300));
    for test in ["smp cpus=300", "smp cpus=300 by-id"] {
        let ended = guest(test).cpus(300).soft_limit(libc::RLIMIT_NOFILE, 256).run();
        ended.passed("smp").said("x2apic, first cpu 0").said(" 255").said(" 299");
    }
}

#[test]
fn linux_uses_255_cpus_and_that_is_said() {
    need!(host::kvm(), host::vcpus(256));
    if !Path::new(host::STOCK_KERNEL).exists() {
        return skip(&format!("no {}: make guest", host::STOCK_KERNEL));
    }
    let machine = Machine::new(host::STOCK_KERNEL).cpus(256).start();
    machine.complains("Linux uses 255 of the machine's 256 vCPUs");
}

#[test]
fn all_memory_is_there() {
    need!(host::kvm());
    for (size, bytes) in [("16M", 16 << 20), ("128M", 128 << 20), ("1G", 1 << 30)] {
        let step = if size == "1G" { 16 } else { 1 };
        guest(&format!("mem step={step}")).memory(size).run().passed("mem");
        assert_memory(size, bytes);
    }
}

#[test]
fn memory_goes_on_above_4_gib() {
    need!(host::kvm());
    for size in ["3072M", "3073M", "6G"] {
        guest("mem step=128").memory(size).run().passed("mem");
    }
    assert_memory("6G", 6 << 30).said("memory: 0x100000000 0xc0000000 ram\n");
}

/// The guest is told of this much memory, but for what ACPI has below 1 MiB.
fn assert_memory(size: &str, bytes: u64) -> crate::common::machine::Ended {
    let ended = guest("hello").memory(size).run();
    let told: u64 = ended.passed("hello").value("memory bytes: ").parse().expect("a number");
    assert!(told <= bytes && bytes - told <= 1 << 20, "{told} of {bytes} bytes");
    ended
}
