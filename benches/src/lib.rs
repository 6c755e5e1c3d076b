//! What benchmarks share: the workloads, the measuring, the figures.
//!
//! Owns: seeded generators with exact manifests (`tsbs`, `shopfloor` with `backfill`'s lateness,
//! `fleet`), what is sent and checked side by side in a soak (`lane`), what a manifest is and how SQL recomputes it (`manifest`, `verify`), clients that cost
//! little (`http` with `load`, `flight`), a server as a child process and what procfs says about
//! it (`server`), the order of a run (`stage`), the one JSON line in which it ends (`figures`).
//! Never: part of the product, so it uses clock, files and sockets directly.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark measures the machine itself and reports to a terminal"
)]

pub mod backfill;
pub mod figures;
pub mod fixture;
pub mod fleet;
pub mod flight;
pub mod http;
pub mod lane;
pub mod load;
pub mod manifest;
pub mod queries;
pub mod random;
pub mod server;
pub mod shopfloor;
pub mod stage;
pub mod tsbs;
pub mod verify;
