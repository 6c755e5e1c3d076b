//! The project's own commands: `cargo xtask <command>`. `just` forwards to them, continuous
//! integration calls them, and no check exists only there.
//!
//! Owns: what is run, in which order, and how the result is counted.
//! Never: part of the product. It works on the checkout itself, so it uses the file system, the
//! clock and processes directly, which the product may not.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool: it reads the checkout, starts processes and talks to a terminal"
)]

mod deny;
mod fuzz;
mod layers;
mod need;
mod promises;
mod report;
mod secrets;
mod shape;
mod suites;
mod tidy;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Millrace's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every suite, after installing what the suites need (or saying exactly what is missing).
    Test(suites::TestArgs),
    /// Only install what the suites need, or say exactly what is missing.
    Needs,
    /// The fast part: format, tidy, layers, lints and unit tests of the crates without DataFusion.
    Quick,
    /// Storage's random schedules for as long as one likes; prints every seed that fails.
    Soak(suites::SoakArgs),
    /// Only the clients: unmodified Python clients and curl against a real server.
    Clients,
    /// Check the checkout: module heads, forbidden words, dead files, links, the code map.
    Tidy,
    /// Check the directions of dependencies and that one version of each pinned crate is locked.
    Layers,
    /// Print every promise with the tests that prove it; fail on a claimed row without one.
    Promises,
    /// Check licences, sources, duplicates and advisories of the dependencies.
    Deny,
    /// Run every fuzz target for some seconds, from the committed seeds.
    Fuzz(fuzz::FuzzArgs),
    /// Scan the checkout for secrets, after checking that a planted one is found.
    Secrets,
    /// Print the largest files and the longest functions. To look at, not to gate.
    Shape,
    /// Everything that continuous integration does (`.ci/run`).
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test(args) => suites::test(&args),
        Command::Needs => need::packages().and_then(|()| need::python().map(drop)),
        Command::Quick => suites::quick(),
        Command::Soak(args) => suites::soak(&args),
        Command::Clients => suites::clients_alone(),
        Command::Tidy => tidy::run(),
        Command::Layers => layers::run(),
        Command::Promises => promises::run(),
        Command::Deny => deny::run(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Secrets => secrets::run(),
        Command::Shape => shape::run(),
        Command::Ci => suites::ci(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}
