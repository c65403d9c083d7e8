//! The lab (guest/lab), in which tests with Linux guests run where KVM has no hardware behind it.

#[path = "common/mod.rs"]
mod common;

use std::process::{Command, Output, Stdio};

use common::host;

fn lab(limit: &str, script: &str) -> Output {
    let mut lab = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/lab"));
    lab.args(["--time-limit", limit, "--", "sh", "-c", script]).stdin(Stdio::null());
    lab.output().expect("bash, which runs the lab")
}

#[test]
fn a_command_has_its_own_status_until_its_time_is_over() {
    need!(host::program("qemu-system-x86_64").map(drop));
    if !common::linux::made("lab-vmlinux").exists() {
        return common::skip("the lab has no kernel yet: guest/fetch lab");
    }
    let output = lab("300", "[ -e Cargo.toml ] && [ -c /dev/kvm ] && echo inside; exit 7");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"inside\n"[..]), "{output:?}");
    let output = lab("3", "sleep 1000");
    assert_eq!(output.status.code(), Some(124), "{output:?}");
}
