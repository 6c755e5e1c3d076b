//! The buckets between two times.
//!
//! Owns: where they begin. The first and the last are `date_bin`'s own answers, and what lies
//! between is reached by the steps that `date_bin` counts in. Never: goes round the end of time.

use std::sync::Arc;

use datafusion::{
    arrow::{
        datatypes::{DataType, Field, IntervalMonthDayNano, TimeUnit},
        temporal_conversions::timestamp_ns_to_datetime,
    },
    common::{exec_err, plan_err},
    config::ConfigOptions,
    error::Result,
    functions::datetime::date_bin,
    logical_expr::{ColumnarValue, ScalarFunctionArgs},
    scalar::ScalarValue,
};

const DAY_NS: i64 = 86_400_000_000_000;

/// How far it is from one bucket to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Nanoseconds(i64),
    /// Months, counted from `origin_ns`, of which the first bucket is `skip` away.
    Months {
        months: i32,
        origin_ns: i64,
        skip: i64,
    },
}

/// See the module head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Buckets {
    first_ns: i64,
    step: Step,
    count: u64,
}

fn timestamp(ns: i64) -> ScalarValue {
    ScalarValue::TimestampNanosecond(Some(ns), None)
}

/// What `date_bin` says; an error if it has no answer.
fn bin(stride: IntervalMonthDayNano, at_ns: i64, origin_ns: i64) -> Result<i64> {
    let args = vec![
        ScalarValue::IntervalMonthDayNano(Some(stride)),
        timestamp(at_ns),
        timestamp(origin_ns),
    ];
    let field = |t: DataType| Arc::new(Field::new("", t, true));
    let made = date_bin().invoke_with_args(ScalarFunctionArgs {
        arg_fields: args.iter().map(|a| field(a.data_type())).collect(),
        args: args.into_iter().map(ColumnarValue::Scalar).collect(),
        number_rows: 1,
        return_field: field(DataType::Timestamp(TimeUnit::Nanosecond, None)),
        config_options: Arc::new(ConfigOptions::default()),
    })?;
    match made {
        ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(Some(ns), _)) => Ok(ns),
        _ => plan_err!("`date_bin_gapfill` finds no bucket for a bound on time; narrow the bounds"),
    }
}

/// Months since year 0.
fn month(ns: i64) -> Option<i64> {
    let date = timestamp_ns_to_datetime(ns)?.date();
    let text = date.format("%Y-%m").to_string();
    let (year, month) = text.rsplit_once('-')?;
    Some(year.parse::<i64>().ok()? * 12 + month.parse::<i64>().ok()? - 1)
}

impl Buckets {
    /// Those that hold the times from `from_ns` to `to_ns`, both included.
    pub(super) fn between(
        stride: IntervalMonthDayNano,
        origin_ns: i64,
        from_ns: i64,
        to_ns: i64,
    ) -> Result<Self> {
        let (first_ns, last_ns) =
            (bin(stride, from_ns, origin_ns)?, bin(stride, to_ns, origin_ns)?);
        let (step, count) = if stride.months == 0 {
            let days = i64::from(stride.days).checked_mul(DAY_NS);
            let ns = days.and_then(|d| d.checked_add(stride.nanoseconds)).unwrap_or(0);
            if ns <= 0 {
                return plan_err!("`date_bin_gapfill` takes a stride above 0");
            }
            let span = i128::from(last_ns) - i128::from(first_ns);
            (Step::Nanoseconds(ns), span / i128::from(ns) + 1)
        } else {
            let (Some(origin), Some(first), Some(last)) =
                (month(origin_ns), month(first_ns), month(last_ns))
            else {
                return plan_err!("`date_bin_gapfill` finds no month for a bound on time");
            };
            if stride.months < 0 {
                return plan_err!("`date_bin_gapfill` takes a stride above 0");
            }
            let months = stride.months;
            let count = (last - first) / i64::from(months) + 1;
            (Step::Months { months, origin_ns, skip: first - origin }, i128::from(count))
        };
        Ok(Self { first_ns, step, count: u64::try_from(count).unwrap_or(0) })
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Where one begins, counted from 0.
    pub(super) fn start_ns(&self, index: u64) -> Result<i64> {
        let start = match self.step {
            Step::Nanoseconds(ns) => {
                let at = i128::from(self.first_ns) + i128::from(ns) * i128::from(index);
                i64::try_from(at).ok()
            }
            Step::Months { months, origin_ns, skip } => {
                let index = i64::try_from(index).unwrap_or(i64::MAX);
                let away = i64::from(months).checked_mul(index).and_then(|m| m.checked_add(skip));
                away.and_then(|away| shifted(origin_ns, away))
            }
        };
        match start {
            Some(ns) => Ok(ns),
            None => exec_err!("`date_bin_gapfill` came to the end of time; narrow the bounds"),
        }
    }
}

/// A time some months away, as `date_bin` reckons: the same day, or the month's last.
fn shifted(origin_ns: i64, months: i64) -> Option<i64> {
    use datafusion::arrow::datatypes::{IntervalYearMonthType, TimestampNanosecondType};
    let delta = IntervalYearMonthType::make_value(0, i32::try_from(months).ok()?);
    let zone: datafusion::arrow::array::timezone::Tz = "UTC".parse().ok()?;
    TimestampNanosecondType::add_year_months(origin_ns, delta, zone)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR_NS: i64 = 366 * DAY_NS;

    fn stride() -> impl Strategy<Value = IntervalMonthDayNano> {
        prop_oneof![
            (1..30i32).prop_map(|m| IntervalMonthDayNano::new(m, 0, 0)),
            (0..9i32, 1..DAY_NS).prop_map(|(d, ns)| IntervalMonthDayNano::new(0, d, ns)),
            Just(IntervalMonthDayNano::new(0, 7, 0)),
        ]
    }

    proptest! {
        /// Every bucket is its own bin, a nanosecond before it belongs to the one before, and the
        /// ends hold the bounds: so none is missing and none is one too many.
        #[test]
        fn buckets_are_those_of_date_bin(
            stride in stride(),
            origin in -80 * YEAR_NS..80 * YEAR_NS,
            from in -80 * YEAR_NS..80 * YEAR_NS,
            length in 0..YEAR_NS,
        ) {
            let to = from + length;
            let buckets = Buckets::between(stride, origin, from, to).unwrap();
            let last = buckets.count() - 1;
            prop_assert_eq!(buckets.start_ns(0).unwrap(), bin(stride, from, origin).unwrap());
            prop_assert_eq!(buckets.start_ns(last).unwrap(), bin(stride, to, origin).unwrap());
            for index in (0..=last.min(40)).chain(last.saturating_sub(40)..=last) {
                let start = buckets.start_ns(index).unwrap();
                prop_assert_eq!(bin(stride, start, origin).unwrap(), start);
                if index > 0 {
                    let before = bin(stride, start - 1, origin).unwrap();
                    prop_assert_eq!(before, buckets.start_ns(index - 1).unwrap());
                }
            }
        }
    }

    #[test]
    fn strides_that_lead_nowhere_are_refused() {
        for (months, days, ns) in [(0, 0, 0), (0, 0, -5), (0, -1, 0), (-1, 0, 0), (1, 1, 0)] {
            let stride = IntervalMonthDayNano::new(months, days, ns);
            assert!(Buckets::between(stride, 0, 0, 10).is_err(), "{stride:?}");
        }
    }

    #[test]
    fn the_ends_of_time_are_refused_and_not_passed() {
        let stride = IntervalMonthDayNano::new(0, 1, 0);
        assert!(Buckets::between(stride, 0, i64::MIN, 0).is_err());
        let all = Buckets::between(stride, 0, -i64::MAX / 2, i64::MAX).unwrap();
        assert!(all.start_ns(all.count() - 1).is_ok());
        assert!(all.start_ns(all.count()).is_err());
    }
}
