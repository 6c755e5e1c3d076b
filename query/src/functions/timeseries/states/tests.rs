//! Durations of states against their definition, over random rows, groups and partitions.

use std::collections::BTreeMap;

use datafusion::arrow::array::{AsArray, StringArray, TimestampNanosecondArray};
use proptest::prelude::*;

use super::*;

const GROUPS: usize = 3;

/// A row of a test: group, part, time in seconds, state.
type Row = (usize, usize, Option<i64>, Option<&'static str>);
type Map = BTreeMap<String, f64>;

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let time = prop::option::weighted(0.9, -20i64..20);
    let state = prop::option::weighted(0.9, prop::sample::select(vec!["run", "idle", "stop", ""]));
    prop::collection::vec((0..GROUPS, 0usize..4, time, state), 0..80)
}

fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    let states: StringArray = rows.iter().map(|r| r.3).collect();
    let times: TimestampNanosecondArray =
        rows.iter().map(|r| r.2.map(|s| s * 1_000_000_000)).collect();
    vec![Arc::new(states), Arc::new(times)]
}

/// The definition: each second belongs to the last row that is not after it.
fn expected(rows: &[Row], group: usize) -> Option<Map> {
    let own = rows.iter().filter(|r| r.0 == group);
    let mut known: Vec<(i64, &str)> = own.filter_map(|r| Some((r.2?, r.3?))).collect();
    known.sort();
    let mut map: Map = known.iter().map(|(_, state)| ((*state).to_owned(), 0.0)).collect();
    for second in known.first()?.0..known.last()?.0 {
        let (_, state) = known.iter().rev().find(|(time, _)| *time <= second)?;
        *map.get_mut(*state)? += 1.0;
    }
    Some(map)
}

fn maps(column: &ArrayRef) -> Vec<Option<Map>> {
    let column = column.as_map();
    let map = |entries: datafusion::arrow::array::StructArray| {
        let keys = entries.column(0).as_string::<i32>().iter().map(|k| k.unwrap().to_owned());
        let values = entries.column(1).as_primitive::<datafusion::arrow::datatypes::Float64Type>();
        let keys: Vec<String> = keys.collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "each state once and in order: {keys:?}");
        keys.into_iter().zip(values.values().iter().copied()).collect()
    };
    column.iter().map(|m| m.map(map)).collect()
}

fn durations() -> Durations {
    Durations::new(Stop::default())
}

proptest! {
    #[test]
    fn any_order_and_any_parts_give_what_the_definition_says(rows in rows()) {
        let mut whole = durations();
        for part in 0..4 {
            let own: Vec<Row> = rows.iter().copied().filter(|r| r.1 == part).collect();
            let groups: Vec<usize> = own.iter().map(|r| r.0).collect();
            if part == 0 {
                let state = whole.convert_to_state(&columns(&own), None).unwrap();
                whole.merge_batch(&state, &groups, GROUPS).unwrap();
                continue;
            }
            let mut partial = durations();
            partial.update_batch(&columns(&own), &groups, None, GROUPS).unwrap();
            let state = partial.state(EmitTo::All).unwrap();
            // A state may come in slices, and its lists in another order.
            for group in (0..GROUPS).rev() {
                let slice: Vec<ArrayRef> = state.iter().map(|c| c.slice(group, 1)).collect();
                whole.merge_batch(&slice, &[group], GROUPS).unwrap();
            }
        }
        let first = maps(&whole.evaluate(EmitTo::First(1)).unwrap());
        let rest = maps(&whole.evaluate(EmitTo::All).unwrap());
        let expected: Vec<_> = (0..GROUPS).map(|group| expected(&rows, group)).collect();
        prop_assert_eq!([first, rest].concat(), expected);
    }
}

#[test]
fn a_long_name_in_many_groups_is_kept_once_and_refused_when_it_would_be_repeated() {
    let long = "x".repeat(1 << 20);
    let rows = 200;
    let states = StringArray::from_iter_values((0..rows).map(|_| &long));
    let times = TimestampNanosecondArray::from_iter_values(0..rows as i64);
    let columns: Vec<ArrayRef> = vec![Arc::new(states), Arc::new(times)];
    let groups: Vec<usize> = (0..rows).collect();
    let mut many = durations();
    many.update_batch(&columns, &groups, None, rows).unwrap();
    assert!(many.size() < 8 << 20, "{} bytes", many.size());
    let refused = QueryError::from(many.evaluate(EmitTo::All).unwrap_err());
    assert_eq!(refused.code().0, "query_value_too_large");
}

#[test]
fn no_rows_have_no_map() {
    let mut whole = durations();
    whole.samples.at_least(1);
    let mut whole = Whole::new(whole);
    let state: Vec<ArrayRef> =
        whole.state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
    let mut again = durations();
    again.samples.at_least(1);
    let mut again = Whole::new(again);
    again.merge_batch(&state).unwrap();
    assert!(again.evaluate().unwrap().is_null());
    assert!(again.evaluate().is_err(), "what was asked for is gone");
}
