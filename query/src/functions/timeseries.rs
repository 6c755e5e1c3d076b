//! Aggregates over rows in the order of their time.
//!
//! Owns: the functions that DataFusion has not got: counters, averages weighted by time, durations
//! of states, the value at a time, histograms. Their names are those of TimescaleDB and InfluxDB.
//! Rows may come in any order and in any number of partitions; what is kept of them is counted by
//! the query's memory.
//! Never: guesses what was before the first row or after the last one.
//! Invariants: a row without a value or without a time is left out, as if it were not there; the
//! result does not depend on the order of the input. Of rows of equal time those that compute take
//! the smaller value first, `first`, `last` and `state_at` any, and windows as the window has them.

pub(crate) mod argument;
mod at_time;
mod front;
mod histogram;
mod measured;
mod names;
mod number;
mod running;
mod samples;
mod states;
mod walk;
mod whole;

use std::sync::Arc;

use datafusion::logical_expr::AggregateUDF;

use self::{
    at_time::{AtTime, Pick},
    front::Front,
    histogram::Histogram,
    measured::Measured,
    running::Windowed,
    states::StateDurations,
    walk::Measure,
};
use super::stop::Stop;

/// All of them, for one query.
pub(super) fn all(stop: &Stop) -> Vec<Arc<AggregateUDF>> {
    let measures = Measure::ALL.map(|measure| {
        let window = Windowed::new(measure, stop.clone());
        AggregateUDF::new_from_impl(Front::both(Measured::new(measure), window))
    });
    let picks = Pick::ALL.map(|pick| AggregateUDF::new_from_impl(AtTime::new(pick)));
    let others =
        [Front::grouped(StateDurations::new(stop.clone())), Front::grouped(Histogram::new())]
            .map(AggregateUDF::new_from_impl);
    measures.into_iter().chain(picks).chain(others).map(Arc::new).collect()
}

#[cfg(test)]
mod sql_tests;
