//! `date_bin_gapfill`, `locf` and `interpolate`: a row for every bucket of time.
//!
//! Owns: the functions' names, the rule that turns `GROUP BY date_bin_gapfill(...)` into a node
//! above the aggregate, and the operator that makes the missing rows. The names are those of
//! InfluxDB and TimescaleDB, the buckets exactly those of `date_bin`.
//! Never: drops a row that the aggregate made; makes rows without bounds on time.
//! Invariants: per group of the other columns there is one row for each bucket from the one of the
//! smallest time that WHERE lets pass to the one of the largest; the number of made rows is bounded.

mod bounds;
mod buckets;
mod calls;
mod columns;
mod exec;
mod group;
mod node;
mod rule;

pub(super) use self::{
    calls::all as calls,
    exec::{GapFillPlanner, bytes},
    node::take_gates,
    rule::GapFillRule,
};

/// Rows that one query may make for buckets without any. At 8 bytes a time this is 80 MB of
/// results; a day of seconds for a hundred series fits.
const ROWS_MAX: u64 = 10_000_000;

#[cfg(test)]
mod tests;
