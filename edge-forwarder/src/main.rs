//! `millrace-edge`: see `millrace-edge --help`.

fn main() -> std::process::ExitCode {
    millrace_edge::cli::main()
}
