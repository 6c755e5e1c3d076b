//! The columns of made rows.
//!
//! Owns: how each kind of column is filled, and where a line between two values goes.
//! Never: makes a value before the first or after the last one that is there.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, UInt64Array},
        compute::take,
        datatypes::{DataType, Float64Type, Int64Type, UInt64Type},
    },
    common::plan_err,
    error::Result,
};

/// For each row of a stretch: its time, and the row that is there.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    pub(super) times_ns: Vec<i64>,
    pub(super) rows: Vec<Option<usize>>,
}

/// The values there are, by nanosecond.
pub(super) struct Known<'a> {
    pub(super) times_ns: &'a [i64],
    pub(super) values: &'a ArrayRef,
}

fn taken(values: &ArrayRef, rows: impl Iterator<Item = Option<usize>>) -> Result<ArrayRef> {
    let rows: UInt64Array = rows.map(|r| r.map(|r| r as u64)).collect();
    Ok(take(values.as_ref(), &rows, None)?)
}

/// The group's value in every row.
pub(super) fn repeated(values: &ArrayRef, rows: usize) -> Result<ArrayRef> {
    taken(values, std::iter::repeat_n(Some(0), rows))
}

/// What is there.
pub(super) fn present(values: &ArrayRef, stretch: &Stretch) -> Result<ArrayRef> {
    taken(values, stretch.rows.iter().copied())
}

/// What is there, or else the last before that was. `last` goes on from stretch to stretch.
pub(super) fn previous(
    values: &ArrayRef,
    stretch: &Stretch,
    last: &mut Option<usize>,
) -> Result<ArrayRef> {
    let rows = stretch.rows.iter().map(|row| {
        if let Some(row) = row.filter(|r| values.is_valid(*r)) {
            *last = Some(row);
        }
        *last
    });
    taken(values, rows)
}

/// What is there, or else a line. `last` goes on from stretch to stretch.
pub(super) fn linear(
    known: &Known<'_>,
    stretch: &Stretch,
    last: &mut Option<usize>,
) -> Result<ArrayRef> {
    match known.values.data_type() {
        DataType::Float64 => Ok(line::<Float64Type>(known, stretch, last, floats)),
        DataType::Int64 => Ok(line::<Int64Type>(known, stretch, last, |a, b, part, whole| {
            let whole_number = between(i128::from(a), i128::from(b), part, whole);
            i64::try_from(whole_number).unwrap_or(a)
        })),
        DataType::UInt64 => Ok(line::<UInt64Type>(known, stretch, last, |a, b, part, whole| {
            let whole_number = between(i128::from(a), i128::from(b), part, whole);
            u64::try_from(whole_number).unwrap_or(a)
        })),
        other => plan_err!("`interpolate` takes a number, not {other}"),
    }
}

fn line<T: ArrowPrimitiveType>(
    known: &Known<'_>,
    stretch: &Stretch,
    last: &mut Option<usize>,
    at: impl Fn(T::Native, T::Native, i128, i128) -> T::Native,
) -> ArrayRef {
    let values = known.values.as_primitive::<T>();
    let mut next: Option<usize> = None;
    let filled = stretch.rows.iter().zip(&stretch.times_ns).map(|(row, time)| {
        if let Some(row) = row.filter(|r| values.is_valid(*r)) {
            *last = Some(row);
            return Some(values.value(row));
        }
        let before = (*last)?;
        if next.is_none_or(|n| n <= before) {
            next = (before + 1..values.len()).find(|r| values.is_valid(*r));
        }
        let after = next?;
        let (start, end) = (*known.times_ns.get(before)?, *known.times_ns.get(after)?);
        let part = i128::from(*time) - i128::from(start);
        let whole = i128::from(end) - i128::from(start);
        Some(at(values.value(before), values.value(after), part, whole))
    });
    Arc::new(filled.collect::<PrimitiveArray<T>>())
}

/// A point on the line, rounded to the nearest whole number, halves away from zero.
fn between(a: i128, b: i128, part: i128, whole: i128) -> i128 {
    let rise = b - a;
    let exact = a.checked_mul(whole).zip(rise.checked_mul(part));
    match exact.and_then(|(from, up)| from.checked_add(up)?.checked_mul(2)) {
        // Half of the divisor with the sign of the dividend makes cutting off rounding.
        Some(twice) => (twice + whole * twice.signum()) / (2 * whole),
        // Only spans of centuries between values at the ends of their type come here.
        None => a + (rise as f64 * (part as f64 / whole as f64)).round() as i128,
    }
}

/// A point on the line between two floats, exact at equal ends and without overflow between.
fn floats(a: f64, b: f64, part: i128, whole: i128) -> f64 {
    let share = part as f64 / whole as f64;
    let rise = b - a;
    if a == b {
        a
    } else if rise.is_finite() {
        a + rise * share
    } else {
        a * (1.0 - share) + b * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_rounded_to_the_nearest() {
        for (a, b, part, whole, expected) in [
            (0, 10, 1, 4, 3),
            (0, -10, 1, 4, -3),
            (1, 2, 1, 2, 2),
            (10, 0, 1, 3, 7),
            (33, 0, 1, 2, 17),
            (-33, 0, 1, 2, -17),
            (i128::from(i64::MIN), i128::from(i64::MAX), 1, 2, -1),
            (i128::from(u64::MAX), 0, 1, 1, 0),
            (5, 5, 3, 7, 5),
        ] {
            assert_eq!(between(a, b, part, whole), expected, "{a} {b} {part}/{whole}");
        }
    }

    #[test]
    fn the_widest_span_between_the_farthest_values_has_a_middle() {
        let (span, top) = (i128::from(u64::MAX), i128::from(u64::MAX));
        let middle = between(0, top, span / 2, span);
        assert!((middle - top / 2).abs() < 1 << 12, "{middle}");
    }

    #[test]
    fn floats_are_exact_where_they_can_be() {
        assert_eq!(floats(0.1, 0.1, 1, 3), 0.1);
        assert_eq!(floats(1.0, 2.0, 1, 4), 1.25);
        assert_eq!(floats(-f64::MAX, f64::MAX, 1, 2), 0.0);
        assert!(floats(f64::NAN, 1.0, 1, 2).is_nan());
        assert_eq!(floats(f64::INFINITY, f64::INFINITY, 1, 2), f64::INFINITY);
    }
}
