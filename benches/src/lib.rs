//! What benchmarks share: the workload, the measuring, the figures.
//!
//! Owns: the seeded TSBS generator with its exact manifest (`tsbs`), a client that costs little
//! (`load`), a server as a child process and what procfs says about it (`server`), the one JSON
//! line in which every whole-system run ends (`figures`).
//! Never: part of the product, so it uses clock, files and sockets directly.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark measures the machine itself and reports to a terminal"
)]

pub mod figures;
pub mod fixture;
pub mod load;
pub mod queries;
pub mod server;
pub mod tsbs;
