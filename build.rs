//! Builds guest/agent, which is the init and the agent of machines: the library carries it, so that `cargo build` alone makes
//! all there is.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    for input in ["build.rs", "Cargo.toml", "Cargo.lock", "src"] {
        println!("cargo:rerun-if-changed=guest/agent/{input}");
    }
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"));
    let out = variable("OUT_DIR");
    if variable("PROFILE") == "release" {
        leave_out_unwinding(Path::new(&out));
    }
    let target = Path::new(&out).join("agent");
    let mut build = Command::new(variable("CARGO"));
    // It depends on nothing and is always optimised, whatever is said about the program around it. A directory of its own: cargo
    // holds the lock of the other one.
    build
        .args(["build", "--release", "--quiet", "--offline", "--locked", "--bin", "rvmm-agent"])
        .args(["--manifest-path", "guest/agent/Cargo.toml", "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", "");
    for name in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        build.env_remove(name);
    }
    let status = build.status().expect("cargo, to build guest/agent");
    assert!(status.success(), "guest/agent does not build");
    println!("cargo:rustc-env=RVMM_AGENT={}", target.join("release/rvmm-agent").display());
}

/// A release ends where it panics, and has no names that a backtrace could show: what only unwinding reads is a tenth of it.
fn leave_out_unwinding(out: &Path) {
    let script = out.join("no-unwinding.ld");
    let text = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table*) } } INSERT AFTER .text;\n";
    fs::write(&script, text).expect("a file in OUT_DIR");
    println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{}", script.display());
}
