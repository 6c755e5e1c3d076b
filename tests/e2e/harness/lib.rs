//! Drives the shipped binaries from outside: starts them, speaks to them, kills them, and keeps
//! the books that decide whether a promise was kept.
//!
//! Owns: the only place where tests start processes and open sockets.
//! Never: links the server. What is tested is the binary that a user runs, found beside the test
//! executable, so build the workspace first (`cargo xtask test` does).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test harness: real processes, sockets and clocks, and it stops at the first surprise"
)]

pub mod corpus;
pub mod device;
pub mod edge;
pub mod http;
pub mod ledger;
pub mod process;
pub mod random;
pub mod scan;
pub mod server;
pub mod wire;

pub use device::Device;
pub use edge::Forwarder;
pub use http::{Answer, Client};
pub use ledger::Ledger;
pub use random::Random;
pub use server::{Server, World};
