//! The suites and their order.
//!
//! Owns: README's test command, the quick part of it, and the clients.
//! Rule: the workspace is always built as a whole, because selecting packages unifies features
//! differently and builds arrow and DataFusion a second time.

use std::{path::PathBuf, process::Command};

use crate::{
    layers, need,
    report::{Outcome, Problem, Report},
    tidy, tree,
};

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Go on without what is missing and could not be installed; the suites that need it fail.
    #[arg(long)]
    allow_missing: bool,
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(args).current_dir(tree::root());
    command
}

/// The unoptimised binary that the last build of the workspace made.
fn binary(name: &str) -> PathBuf {
    need::target().join("debug").join(name)
}

/// Unmodified clients against the real server; `tests/e2e/clients/server.py` starts it.
fn clients(python: &PathBuf) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "unittest", "discover", "--verbose", "--start-directory", "tests/e2e/clients"])
        .env("MILLRACE_BIN", binary("millrace"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(tree::root());
    command
}

fn nextest() -> bool {
    need::runs("cargo", &["nextest", "--version"])
}

/// README's second command.
pub(crate) fn test(args: &TestArgs) -> Outcome {
    let mut report = Report::new("test", 7);
    let ready = report.step("what the suites need from this machine", need::packages);
    if !ready && !args.allow_missing {
        return report.close();
    }
    let mut python = None;
    report.step("a Python environment under the target folder", || {
        python = Some(need::python()?);
        Ok(())
    });
    report.step("a Sparkplug node under the target folder", need::npm);
    let built = report.process("build", &mut cargo(&["build", "--workspace", "--all-targets"]));
    if !built {
        return report.close();
    }
    if nextest() {
        let profile = if std::env::var_os("CI").is_some() { "ci" } else { "default" };
        let run = ["nextest", "run", "--workspace", "--no-fail-fast", "--profile", profile];
        report.process("unit, simulation and end-to-end tests", &mut cargo(&run));
    } else {
        let run = ["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"];
        report.process("unit, simulation and end-to-end tests", &mut cargo(&run));
    }
    report.process("doc tests", &mut cargo(&["test", "--doc", "--workspace"]));
    if let Some(python) = &python {
        report.process("unmodified clients", &mut clients(python));
    }
    report.close()
}

/// What is worth running before every commit.
pub(crate) fn quick() -> Outcome {
    let mut report = Report::new("quick", 5);
    report.process("format", &mut cargo(&["fmt", "--all", "--check"]));
    report.step("tidy", tidy::run);
    report.step("layers", layers::run);
    let crates = [
        "millrace-platform",
        "millrace-protocol",
        "millrace-crypto",
        "millrace-wal",
        "millrace-control",
        "millrace-storage",
        "millrace-edge",
    ];
    let mut lint = vec!["clippy", "--all-targets"];
    let mut unit = vec!["test", "--lib"];
    for name in crates {
        lint.extend(["-p", name]);
        unit.extend(["-p", name]);
    }
    lint.extend(["--", "-D", "warnings"]);
    report.process("lints", &mut cargo(&lint));
    report.process("unit tests of the crates without DataFusion", &mut cargo(&unit));
    report.close()
}

/// How long the schedules run.
#[derive(clap::Args)]
pub(crate) struct SoakArgs {
    /// Minutes.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Threads; all cores without it.
    #[arg(long)]
    jobs: Option<u64>,
    /// The first seed; those of the suite are below 1,000,000.
    #[arg(long, default_value_t = 1_000_000)]
    from: u64,
}

/// The long run of storage's schedules. The dev profile, because assertions count there.
pub(crate) fn soak(args: &SoakArgs) -> Outcome {
    let mut command = cargo(&["test", "-p", "millrace-storage", "--lib", "sim::soak"]);
    command.args(["--", "--ignored", "--nocapture"]);
    command.env("MILLRACE_SOAK_MINUTES", args.minutes.to_string());
    command.env("MILLRACE_SOAK_FROM", args.from.to_string());
    if let Some(jobs) = args.jobs {
        command.env("MILLRACE_SOAK_JOBS", jobs.to_string());
    }
    if command.status()?.success() {
        return Ok(());
    }
    Err(Problem("a schedule failed; its seed and the command that replays it are above".into()))
}

/// Only the clients, against the binary that is there.
pub(crate) fn clients_alone() -> Outcome {
    let python = need::python()?;
    if !binary("millrace").exists() {
        return Err(Problem("build the server first: cargo build --workspace".into()));
    }
    let mut report = Report::new("clients", 1);
    report.process("unmodified clients", &mut clients(&python));
    report.close()
}

/// Everything, as continuous integration does it.
pub(crate) fn ci() -> Outcome {
    let status = Command::new(tree::root().join(".ci").join("run")).status()?;
    if status.success() { Ok(()) } else { Err(Problem(".ci/run failed".into())) }
}
