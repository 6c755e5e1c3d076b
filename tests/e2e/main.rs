//! End-to-end tests: the shipped binaries, driven from outside, one module per area.
//!
//! Owns: the promises as a user meets them. Names start with the promise they prove.
//! Never: reaches into a crate. What cannot be seen from outside is tested beside its code.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests use real processes and files, and stop at the first surprise"
)]

mod access;
mod bad_input;
mod edge;
mod edge_life;
mod fleet;
mod flight_sql;
mod fsck;
mod full_disk;
mod ingest;
mod keys;
mod limits;
mod main_job;
mod memory;
mod pgwire;
mod query;
mod rejected;
mod retention;
mod subscribe;

/// 2026-01-01T00:00:00Z in nanoseconds: times of test rows count from here.
const NEW_YEAR_NS: i64 = 1_767_225_600_000_000_000;

/// `count` rows of the ledger's table, numbered from `from`, by one writer: one millisecond apart.
fn ledger_lines(table: &str, writer: u64, from: u64, count: u64) -> String {
    use std::fmt::Write;
    let mut lines = String::new();
    for n in from..from + count {
        let time = NEW_YEAR_NS + i64::try_from(n).unwrap() * 1_000_000;
        writeln!(lines, "{table},writer={writer} n={n}i,value={}.5 {time}", n % 1000).unwrap();
    }
    lines
}
