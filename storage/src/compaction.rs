//! Merging small files of a window into larger ones.
//!
//! Owns: the choice (planner.rs, pure) and the work (runner.rs). Never: commits by itself; the
//! manifest's only writer does.

pub(crate) mod planner;
pub(crate) mod runner;
