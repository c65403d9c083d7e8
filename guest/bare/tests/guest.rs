//! Checks the linked image, and boots it under QEMU's own emulation where QEMU is installed.

use std::io::Write;
use std::process::Command;

const GUEST: &str = env!("CARGO_BIN_EXE_bare");

/// Says that the test cannot run here, past libtest's capture of standard error.
fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the guest with PVH and gives what it printed; `None` where there is no QEMU.
fn boot(cmdline: &str, arguments: &[&str]) -> Option<String> {
    let cmdline = format!("{cmdline} end=qemu-exit");
    let mut all = vec!["60", "qemu-system-x86_64"];
    all.extend(["-M", "microvm,pit=off,pic=off,rtc=off,ioapic2=off,isa-serial=on", "-accel", "tcg"]);
    all.extend(["-m", "128", "-kernel", GUEST, "-append", &cmdline, "-no-reboot"]);
    all.extend(["-device", "isa-debug-exit,iobase=0x501,iosize=1", "-display", "none", "-serial", "stdio"]);
    all.extend(["-monitor", "none", "-global", "virtio-mmio.force-legacy=false"]);
    all.extend(arguments);
    output("qemu-system-x86_64", &["--version"])?;
    output("timeout", &all)
}

fn boots_well(test: &str, cmdline: &str, arguments: &[&str]) {
    match boot(&format!("test={test} {cmdline}"), arguments) {
        None => skip("no qemu-system-x86_64"),
        Some(text) => assert!(text.lines().any(|line| line == format!("OK {test}")), "{test}:\n{text}"),
    }
}

#[test]
fn has_no_instruction_that_an_emulator_may_lack() {
    let Some(listing) = output("objdump", &["-d", "--no-show-raw-insn", GUEST]) else {
        return skip("no objdump");
    };
    assert!(listing.contains("hlt"), "a listing of the guest");
    for word in ["%xmm", "%ymm", "%mm", "%st", "popcnt", "cmpxchg16b", "fence", "syscall"] {
        let found: Vec<&str> = listing.lines().filter(|line| line.contains(word)).collect();
        assert!(found.is_empty(), "{word} in:\n{}", found.join("\n"));
    }
}

#[test]
fn tests_without_a_device_pass() {
    for (test, cmdline) in [
        ("hello", ""),
        ("pio", ""),
        ("irq", ""),
        ("timer", ""),
        ("smp", "cpus=3"),
        ("mem", ""),
        ("user", "loops=1000000"),
        ("counter", "rounds=3"),
        ("dirty", "rounds=3"),
    ] {
        boots_well(test, cmdline, &["-smp", "3"]);
    }
}

#[test]
fn says_what_the_machine_passed() {
    if let Some(text) = boot("test=hello debugcon=no some=word", &[]) {
        assert!(text.contains("protocol: pvh\n"), "{text}");
        assert!(text.contains("cmdline: test=hello debugcon=no some=word end=qemu-exit\n"), "{text}");
    }
}

#[test]
fn unknown_tests_fail() {
    if let Some(text) = boot("test=none", &[]) {
        assert_eq!(text, "FAIL none: no such test\n");
    }
}

#[test]
fn tests_of_virtio_devices_pass() {
    let disk = std::env::temp_dir().join(format!("bare-guest-{}.img", std::process::id()));
    std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let drive = format!("file={},if=none,id=disk,format=raw,discard=unmap", disk.display());
    let place = "base=0xfeb00e00 gsi=23";
    for option in ["", "poll", "indirect event_idx"] {
        let cmdline = format!("{place} {option}");
        boots_well("blk", &cmdline, &["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
        boots_well("rng", &cmdline, &["-device", "virtio-rng-device"]);
    }
    let network = ["-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net"];
    boots_well("net", &format!("{place} frames=1"), &network);
    boots_well("kick", place, &["-device", "virtio-rng-device"]);
    boots_well(
        "hostile",
        &format!("{place} case=loop-of-two needs-reset"),
        &["-device", "virtio-rng-device"],
    );
    std::fs::remove_file(&disk).expect("the disk");
}
