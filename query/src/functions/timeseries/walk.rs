//! One walk over the rows of a group in the order of their time.
//!
//! Owns: what is added up on the way and what each function makes of it. Knows nothing of columns.
//! Invariant: rows are added in the order of time.

use super::number::Number;

const NS_PER_S: f64 = 1e9;

/// What a function measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Measure {
    /// What a counter has counted.
    Increase,
    /// The same, per second.
    Rate,
    /// Last value minus first value.
    Delta,
    /// Average in which each value weighs as long as it held.
    TimeWeightedAvg,
}

impl Measure {
    pub(super) const ALL: [Self; 4] =
        [Self::Increase, Self::Rate, Self::Delta, Self::TimeWeightedAvg];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Increase => "increase",
            Self::Rate => "rate",
            Self::Delta => "delta",
            Self::TimeWeightedAvg => "time_weighted_avg",
        }
    }
}

/// Sums up to a row.
#[derive(Debug, Clone, Copy)]
struct Sums<N> {
    rows: u64,
    first: (i64, N),
    last: (i64, N),
    increase: f64,
    /// Value times nanoseconds.
    area: f64,
}

/// See the module head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk<N>(Option<Sums<N>>);

impl<N> Default for Walk<N> {
    fn default() -> Self {
        Self(None)
    }
}

impl<N: Number> Walk<N> {
    /// The next row. A counter that falls has started again from nothing.
    pub(super) fn add(&mut self, time: i64, value: N) {
        let Some(sums) = &mut self.0 else {
            let row = (time, value);
            self.0 = Some(Sums { rows: 1, first: row, last: row, increase: 0.0, area: 0.0 });
            return;
        };
        let (before, held) = sums.last;
        let risen = value.above(held);
        sums.increase += if risen < 0.0 { value.float() } else { risen };
        sums.area += held.float() * time.abs_diff(before) as f64;
        sums.last = (time, value);
        sums.rows += 1;
    }

    /// The result; none if the rows do not tell.
    pub(super) fn result(&self, measure: Measure) -> Option<f64> {
        let sums = self.0.as_ref().filter(|s| s.rows > 1)?;
        let (start, first) = sums.first;
        let (end, last) = sums.last;
        let span = end.abs_diff(start) as f64;
        match measure {
            Measure::Increase => Some(sums.increase),
            Measure::Delta => Some(last.above(first)),
            Measure::Rate => (span > 0.0).then(|| sums.increase / (span / NS_PER_S)),
            Measure::TimeWeightedAvg => (span > 0.0).then(|| sums.area / span),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results in the order of [`Measure::ALL`], of rows of seconds and values.
    fn check<N: Number>(rows: &[(i64, N)], expected: [Option<f64>; 4]) {
        let mut walk = Walk::default();
        for (second, value) in rows {
            walk.add(second * 1_000_000_000, *value);
        }
        assert_eq!(Measure::ALL.map(|m| walk.result(m)), expected, "{rows:?}");
    }

    #[test]
    fn a_counter_counts_on_after_a_reset() {
        check(
            &[(0, 10u64), (10, 15), (20, 3), (30, 4)],
            [Some(9.0), Some(0.3), Some(-6.0), Some((100.0 + 150.0 + 30.0) / 30.0)],
        );
    }

    #[test]
    fn one_row_and_no_row_tell_nothing() {
        check::<f64>(&[], [None; 4]);
        check(&[(5, 7.5)], [None; 4]);
    }

    #[test]
    fn rows_of_one_time_have_no_rate_and_no_weight() {
        check(&[(5, 1i64), (5, 3)], [Some(2.0), None, Some(2.0), None]);
    }

    #[test]
    fn the_whole_range_of_times_and_values_does_not_overflow() {
        let mut walk = Walk::default();
        walk.add(i64::MIN, i64::MIN);
        walk.add(i64::MAX, i64::MAX);
        assert_eq!(walk.result(Measure::Delta), Some(u64::MAX as f64));
        assert_eq!(walk.result(Measure::TimeWeightedAvg), Some(i64::MIN as f64));
    }
}
