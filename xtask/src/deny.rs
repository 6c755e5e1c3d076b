//! Licences, sources, duplicates and advisories of the dependencies, by cargo-deny.
//!
//! Owns: the pinned version of the tool, and what happens where the advisory database cannot be
//! reached: everything else is still checked, and a loud line says what was not.

use std::process::{Command, Stdio};

use crate::{
    need,
    report::{Outcome, Problem},
    tree,
};

const VERSION: &str = "0.20.2";

fn deny(program: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--workspace", "--locked", "check", "--hide-inclusion-graph"])
        .args(args)
        .current_dir(tree::root())
        .stdin(Stdio::null());
    command
}

/// The command.
pub(crate) fn run() -> Outcome {
    let program = need::cargo_tool("cargo-deny", VERSION)?;
    if !deny(&program, &["licenses", "bans", "sources"]).status()?.success() {
        return Err(Problem("cargo-deny refuses a licence, a duplicate or a source".into()));
    }
    let output = deny(&program, &["advisories"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        print!("{said}");
        return Ok(());
    }
    // The database is a git repository of its own; a network that carries only package
    // registries does not reach it.
    let unreachable = ["failed to fetch advisory database", "failed to load advisory database"];
    if unreachable.iter().any(|u| said.contains(u)) {
        println!(
            "!!! ADVISORIES NOT CHECKED: the RustSec database cannot be reached from here.\n\
             !!! Licences, duplicates and sources were. Run `cargo xtask deny` on a machine with\n\
             !!! access before a release (docs/decisions/gaps.md)."
        );
        return Ok(());
    }
    Err(Problem(said))
}
