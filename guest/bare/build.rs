//! Links the guest as a static ELF at 1 MiB, and refuses flags under which it would not run.

fn main() {
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("noimplicitfloat") {
        panic!(
            "Build from guest/bare and without RUSTFLAGS: .cargo/config.toml has flags that keep SSE out of the guest"
        );
    }
    println!("cargo:rerun-if-changed=bare.ld");
    let script = concat!("-Wl,-T", env!("CARGO_MANIFEST_DIR"), "/bare.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-z,norelro",
        script,
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
