//! The rvmm-registry program: everything is in the library.

fn main() -> std::process::ExitCode {
    rvmm::cli::registry_main()
}
