//! The crash harness: a system on a simulated machine, a ledger of what it promised, and the ways
//! to hurt it. No DataFusion; builds in seconds.
//!
//! Owns: the words that crash tests are told in ([`World`]), the oracle ([`Ledger`]), schedules of
//! disasters ([`schedule`]), planted bugs ([`Bug`]).
//! Never: looks inside a system; a system is whatever implements [`System`]. The first is a log
//! with a store behind it ([`LogAndStore`]), in the order of steps that storage has: append, sync,
//! acknowledge; flush, floor, trim. A further one implements [`System`] and gets all schedules.
//! Seeds: `MILLRACE_SEEDS=n` multiplies the counts; a violation names seed and schedule.

mod bug;
mod ledger;
mod log_and_store;
pub mod page_reader;
pub mod schedule;
mod stage;
mod world;

pub use bug::Bug;
pub use ledger::{Ledger, Violation};
pub use log_and_store::LogAndStore;
pub use stage::{Stage, Stop, System};
pub use world::World;

/// `default` seeds, times `MILLRACE_SEEDS`.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let times = std::env::var("MILLRACE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    0..default.saturating_mul(times)
}
