//! Whole-system benchmarks: real processes, TLS, a tenant with its keys, acks after sync.
//!
//! Owns: the command line. Called by the name `millrace`, this executable *is* the server, so
//! that a benchmark always measures the code it was built with.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark measures the machine itself and reports to a terminal"
)]

mod run_tsbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Whole-system benchmarks; each ends with one JSON line of its figures on standard output.
#[derive(Parser)]
#[command(name = "millrace-benches", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// TSBS cpu-only through line protocol: load, settle, verify every figure, measure.
    Tsbs(run_tsbs::Args),
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    if called == millrace_benches::server::AS_SERVER {
        return millrace::cli::main();
    }
    let outcome = match Cli::parse().command {
        Command::Tsbs(args) => run_tsbs::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("millrace-benches: {failed}");
            ExitCode::FAILURE
        }
    }
}
