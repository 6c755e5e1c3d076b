//! The measures against their definitions, over random rows, groups and partitions.

use datafusion::{
    arrow::array::{AsArray, TimestampNanosecondArray},
    scalar::ScalarValue,
};
use proptest::prelude::*;

use super::{
    super::{
        super::stop::Stop,
        running::{Running, Windowed},
    },
    *,
};

const GROUPS: usize = 3;

/// A row of a test: group, part, time in seconds, value.
type Row = (usize, usize, Option<i64>, Option<i64>);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let time = prop::option::weighted(0.9, -20i64..20);
    let value = prop::option::weighted(0.9, 0i64..30);
    prop::collection::vec((0..GROUPS, 0usize..4, time, value), 0..80)
}

/// Columns as a batch brings them. A float that is missing is now and then not a number.
fn columns<N: Number>(rows: &[Row], number: fn(i64) -> N) -> Vec<ArrayRef> {
    let value = |row: &Row| row.3.map(number);
    let values: PrimitiveArray<N::Arrow> = rows.iter().map(value).collect();
    let time = |row: &Row| row.2.map(|s| s * 1_000_000_000);
    let times: TimestampNanosecondArray = rows.iter().map(time).collect();
    vec![Arc::new(values), Arc::new(times.with_timezone("UTC"))]
}

/// The definition, in seconds.
fn expected(measure: Measure, rows: &[Row]) -> Option<f64> {
    let mut known: Vec<(i64, i64)> = rows.iter().filter_map(|r| Some((r.2?, r.3?))).collect();
    known.sort();
    let pairs: Vec<((i64, i64), (i64, i64))> =
        known.iter().copied().zip(known.iter().copied().skip(1)).collect();
    let (first, last) = (known.first()?, known.last()?);
    let increase: i64 = pairs.iter().map(|(a, b)| if b.1 < a.1 { b.1 } else { b.1 - a.1 }).sum();
    let area: i64 = pairs.iter().map(|(a, b)| a.1 * (b.0 - a.0)).sum();
    let span = (last.0 - first.0) as f64;
    match measure {
        _ if pairs.is_empty() => None,
        Measure::Increase => Some(increase as f64),
        Measure::Delta => Some((last.1 - first.1) as f64),
        Measure::Rate => (span > 0.0).then(|| increase as f64 / span),
        Measure::TimeWeightedAvg => (span > 0.0).then(|| area as f64 / span),
    }
}

fn close(found: Option<f64>, expected: Option<f64>) -> bool {
    match (found, expected) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs().max(1.0),
        (a, b) => a == b,
    }
}

fn group_of(rows: &[Row], group: usize) -> Vec<Row> {
    rows.iter().copied().filter(|r| r.0 == group).collect()
}

/// Two phases over four parts, one of them without a group table of its own.
fn in_two_phases<N: Number>(
    measure: Measure,
    rows: &[Row],
    number: fn(i64) -> N,
) -> Vec<Option<f64>> {
    let mut whole = Many::<N>::new(measure);
    for part in 0..4 {
        let own: Vec<Row> = rows.iter().copied().filter(|r| r.1 == part).collect();
        let groups: Vec<usize> = own.iter().map(|r| r.0).collect();
        let columns = columns(&own, number);
        if part == 0 {
            let state = whole.convert_to_state(&columns, None).unwrap();
            whole.merge_batch(&state, &groups, GROUPS).unwrap();
            continue;
        }
        let mut partial = Many::<N>::new(measure);
        partial.update_batch(&columns, &groups, None, GROUPS).unwrap();
        let first = partial.state(EmitTo::First(1)).unwrap();
        whole.merge_batch(&first, &[0], GROUPS).unwrap();
        let rest = partial.state(EmitTo::All).unwrap();
        whole.merge_batch(&rest, &[1, 2], GROUPS).unwrap();
    }
    let first = whole.evaluate(EmitTo::First(2)).unwrap();
    let rest = whole.evaluate(EmitTo::All).unwrap();
    let floats = |column: &ArrayRef| {
        column.as_primitive::<datafusion::arrow::datatypes::Float64Type>().iter().collect()
    };
    let (first, rest): (Vec<_>, Vec<_>) = (floats(&first), floats(&rest));
    [first, rest].concat()
}

fn check<N: Number>(rows: &[Row], number: fn(i64) -> N) -> Result<(), TestCaseError> {
    for measure in Measure::ALL {
        let found = in_two_phases(measure, rows, number);
        for group in 0..GROUPS {
            let expected = expected(measure, &group_of(rows, group));
            let close = close(found[group], expected);
            prop_assert!(close, "{measure:?} {group}: {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

fn scalar(value: ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Float64(value) => value,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn any_order_and_any_parts_give_what_the_definition_says(rows in rows()) {
        check(&rows, |n| n as f64)?;
        check(&rows, |n| n)?;
        check(&rows, |n| n as u64)?;
    }

    #[test]
    fn a_window_in_order_gives_the_result_of_each_frame(rows in rows(), width in 1usize..10) {
        let mut rows = rows;
        rows.sort_by_key(|r| (r.2.unwrap_or(0), r.3));
        for measure in Measure::ALL {
            let window = Windowed::new(measure, Stop::default());
            let mut grows = Running::<i64>::new(&window, false);
            let mut slides = Running::<i64>::new(&window, true);
            for end in 0..rows.len() {
                let start = (end + 1).saturating_sub(width);
                for frame in [&mut grows, &mut slides] {
                    frame.update_batch(&columns(&rows[end..=end], |n| n)).unwrap();
                }
                if start > 0 {
                    slides.retract_batch(&columns(&rows[start - 1..start], |n| n)).unwrap();
                }
                let found = [&mut grows, &mut slides].map(|w| scalar(w.evaluate().unwrap()));
                let defined = [0, start].map(|start| expected(measure, &rows[start..=end]));
                for (found, defined) in found.into_iter().zip(defined) {
                    prop_assert!(close(found, defined), "{measure:?}: {found:?}, not {defined:?}");
                }
            }
        }
    }

    #[test]
    fn states_of_single_groups_merge(rows in rows(), cut in 0usize..80) {
        let (left, right) = rows.split_at(cut.min(rows.len()));
        let mut whole = Whole::new(Many::<i64>::one(Measure::Rate));
        for part in [left, right] {
            let mut partial = Whole::new(Many::<i64>::one(Measure::Rate));
            partial.update_batch(&columns(part, |n| n)).unwrap();
            let state = partial.state().unwrap();
            let state: Vec<ArrayRef> = state.iter().map(|s| s.to_array().unwrap()).collect();
            whole.merge_batch(&state).unwrap();
        }
        let found = scalar(whole.evaluate().unwrap());
        prop_assert!(close(found, expected(Measure::Rate, &rows)), "{found:?}");
    }
}

#[test]
fn what_is_not_a_number_is_left_out() {
    let rows: Vec<Row> = (0..4).map(|n| (0, 0, Some(n), Some(n))).collect();
    let nan_at_two = |n: i64| if n == 2 { f64::NAN } else { n as f64 };
    let found = in_two_phases(Measure::Increase, &rows, nan_at_two);
    assert_eq!(found, [Some(3.0), None, None]);
}

#[test]
fn a_filter_takes_rows_away_in_both_ways_to_a_state() {
    let rows: Vec<Row> = [1, 5, 9].map(|n| (0, 0, Some(n), Some(n))).into();
    let filter = BooleanArray::from(vec![Some(true), None, Some(true)]);
    let mut many = Many::<i64>::new(Measure::Increase);
    let first_two = BooleanArray::from(vec![Some(true), Some(true), Some(false)]);
    many.update_batch(&columns(&rows, |n| n), &[0, 0, 0], Some(&first_two), 1).unwrap();
    assert_eq!(many.samples.kept().len(), 2);
    let state = many.convert_to_state(&columns(&rows, |n| n), Some(&filter)).unwrap();
    assert_eq!(state[0].as_list::<i32>().value_offsets(), [0, 1, 1, 2]);
}

#[test]
fn no_rows_have_a_state_and_no_result() {
    let state: Vec<ArrayRef> = Whole::new(Many::<f64>::one(Measure::Delta))
        .state()
        .unwrap()
        .iter()
        .map(|s| s.to_array().unwrap())
        .collect();
    assert_eq!(state[0].len(), 1);
    let mut whole = Whole::new(Many::<f64>::one(Measure::Delta));
    whole.merge_batch(&state).unwrap();
    assert_eq!(scalar(whole.evaluate().unwrap()), None);
}

#[test]
fn a_window_that_grows_keeps_no_rows_and_stops_with_its_query() {
    let stop = Stop::default();
    let window = Windowed::new(Measure::Increase, stop.clone());
    let mut running = Running::<i64>::new(&window, false);
    let size = running.size();
    let rows: Vec<Row> = (0..10_000).map(|n| (0, 0, Some(n), Some(n))).collect();
    running.update_batch(&columns(&rows, |n| n)).unwrap();
    assert_eq!(running.size(), size);
    assert_eq!(scalar(running.evaluate().unwrap()), Some(9_999.0));
    assert!(running.update_batch(&columns(&rows[..1], |n| n)).is_err(), "out of order");
    stop.set();
    assert!(running.evaluate().is_err());
}

#[test]
fn memory_is_known_before_it_is_copied() {
    let rows: Vec<Row> = (0..10_000).map(|n| (0, 0, Some(n), Some(n))).collect();
    let mut many = Many::<i64>::new(Measure::Delta);
    many.update_batch(&columns(&rows, |n| n), &vec![0; rows.len()], None, 1).unwrap();
    let known = many.size();
    let kept = size_of_val(many.samples.kept());
    let state: usize = many
        .state(EmitTo::All)
        .unwrap()
        .iter()
        .map(|c| c.to_data().get_slice_memory_size().unwrap())
        .sum();
    assert!(known >= kept + state, "{known} for {kept} and {state}");
    assert!(many.size() < known / 10, "what was emitted is not counted any more");
}
