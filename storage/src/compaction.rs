//! Merging small files into larger ones, and late rows into what they belong to.
//!
//! Owns: the choice (planner.rs, territory.rs and overlap.rs, pure), whose turn it is
//! (scheduler.rs, pure), the work (runner.rs), its commit (driver.rs, a part of the manifest's
//! only writer) and what it has cost (history.rs).

pub(crate) mod driver;
pub(crate) mod history;
pub mod level;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod overlap;
pub(crate) mod planner;
pub(crate) mod runner;
pub(crate) mod scheduler;
pub(crate) mod territory;
#[cfg(test)]
mod tests;
