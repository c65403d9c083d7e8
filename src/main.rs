//! The rvmm program: everything is in the library.

fn main() -> std::process::ExitCode {
    rvmm::cli::main()
}
