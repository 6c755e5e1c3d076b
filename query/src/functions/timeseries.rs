//! Aggregates over rows in the order of their time.
//!
//! Owns: the functions that DataFusion has not got: counters, averages weighted by time, durations
//! of states, the value at a time, histograms. Their names are those of TimescaleDB and InfluxDB.
//! Rows may come in any order and in any number of partitions; what is kept of them is counted by
//! the query's memory.
//! Never: guesses what was before the first row or after the last one.
//! Invariants: a row without a value or without a time is left out, as if it were not there; the
//! result does not depend on the order of the input. Of rows of equal time those that compute take
//! the smaller value first; `first`, `last` and `state_at` take any.

mod argument;
mod at_time;
mod histogram;
mod measured;
mod names;
mod number;
mod samples;
mod states;
mod walk;
mod whole;

use std::sync::Arc;

use datafusion::logical_expr::AggregateUDF;

use self::{
    at_time::{AtTime, Pick},
    histogram::Histogram,
    measured::Measured,
    states::StateDurations,
    walk::Measure,
    whole::NoWindow,
};
use super::stop::Stop;

/// All of them, for one query.
pub(super) fn all(stop: &Stop) -> Vec<Arc<AggregateUDF>> {
    let mut all: Vec<AggregateUDF> = Measure::ALL
        .iter()
        .map(|measure| AggregateUDF::new_from_impl(Measured::new(*measure, stop.clone())))
        .collect();
    all.extend(Pick::ALL.iter().map(|pick| AggregateUDF::new_from_impl(AtTime::new(*pick))));
    let durations = NoWindow::new(StateDurations::new(stop.clone()));
    all.push(AggregateUDF::new_from_impl(durations));
    all.push(AggregateUDF::new_from_impl(NoWindow::new(Histogram::new())));
    all.into_iter().map(Arc::new).collect()
}

#[cfg(test)]
mod sql_tests;
