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

mod run_fairness;
mod run_fleet;
mod run_restart;
mod run_shopfloor;
mod run_soak;
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
    /// TSBS cpu-only through line protocol or Flight: load, settle, verify every figure, measure.
    Tsbs(run_tsbs::Args),
    /// 200 machines with 14 fields at 1 Hz: gauges of three decimals, a counter, two texts.
    Shopfloor(run_shopfloor::ShopFloorArgs),
    /// The same with a share of rows hours to weeks late and some sent twice.
    Backfill(run_shopfloor::BackfillArgs),
    /// Ten thousand tenants with a few tables and a few rows each.
    Fleet(run_fleet::Args),
    /// A kill with a gibibyte of log, and how long a start takes until rows are taken and there.
    Restart(run_restart::Args),
    /// One tenant's acks beside another that offers ten times its budget.
    Fairness(run_fairness::Args),
    /// Everything at once for a while, checked all the time, through kills and restarts.
    Soak(run_soak::Args),
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    if called == millrace_benches::server::AS_SERVER {
        return millrace::cli::main();
    }
    let outcome = match Cli::parse().command {
        Command::Tsbs(args) => run_tsbs::run(&args),
        Command::Shopfloor(args) => run_shopfloor::run(&args),
        Command::Backfill(args) => run_shopfloor::run_backfill(&args),
        Command::Fleet(args) => run_fleet::run(&args),
        Command::Restart(args) => run_restart::run(&args),
        Command::Fairness(args) => run_fairness::run(&args),
        Command::Soak(args) => run_soak::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("millrace-benches: {failed}");
            ExitCode::FAILURE
        }
    }
}
