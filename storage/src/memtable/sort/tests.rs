//! Tests of `sort.rs`: runs are what a map of rows says, whichever way their values were moved.

use arrow::{
    array::AsArray, datatypes::TimestampNanosecondType, util::display::array_value_to_string,
};
use millrace_protocol::{
    batch::{Presence, SeriesKey},
    value::Texts,
};
use proptest::prelude::*;

use super::*;
use crate::{schema::TagColumn, series::dictionary::SeriesDictionary};

const FIELDS: [(u32, FieldType); 5] = [
    (1, FieldType::F64),
    (2, FieldType::I64),
    (3, FieldType::U64),
    (4, FieldType::Bool),
    (5, FieldType::Utf8),
];

/// A row: series, time, which fields it has, and the number that they all say.
type Row = (u32, i64, [bool; 5], i16);

/// What a window holds, by (rank, time).
type Rows = BTreeMap<(u32, i64), [Option<i16>; 5]>;

fn values(ty: FieldType, rows: &[Row]) -> FieldValues {
    let numbers = rows.iter().map(|r| r.3);
    match ty {
        FieldType::F64 => FieldValues::F64(numbers.map(f64::from).collect()),
        FieldType::I64 => FieldValues::I64(numbers.map(i64::from).collect()),
        FieldType::U64 => FieldValues::U64(numbers.map(|n| u64::from(n.unsigned_abs())).collect()),
        FieldType::Bool => FieldValues::Bool(numbers.map(|n| n > 0).collect()),
        FieldType::Utf8 => {
            let mut texts = Texts::default();
            numbers.for_each(|n| texts.push(&format!("n{n}")));
            FieldValues::Utf8(texts)
        }
    }
}

fn shown(ty: FieldType, number: i16) -> String {
    match ty {
        FieldType::F64 => format!("{:?}", f64::from(number)),
        FieldType::I64 => number.to_string(),
        FieldType::U64 => number.unsigned_abs().to_string(),
        FieldType::Bool => (number > 0).to_string(),
        FieldType::Utf8 => format!("n{number}"),
    }
}

/// A chunk without the fields that no row has.
fn chunk(lsn: u64, rows: &[Row]) -> Arc<Chunk> {
    let fields = FIELDS.iter().zip(0..).filter(|(_, at)| rows.iter().any(|r| r.2[*at])).map(
        |((id, ty), at)| {
            let mut present = Presence::default();
            rows.iter().for_each(|r| present.push(r.2[at]));
            ChunkField { id: *id, values: values(*ty, rows), present }
        },
    );
    let (time, ordinal) = rows.iter().map(|r| (r.1, r.0)).unzip();
    Arc::new(Chunk::new(lsn, time, ordinal, fields.collect()))
}

proptest! {
    #[test]
    fn runs_are_what_a_map_of_rows_says(
        chunks in prop::collection::vec(
            prop::collection::vec((0u32..5, 0i64..40, any::<[bool; 5]>(), any::<i16>()), 1..40),
            1..5,
        ),
        // One window for all takes every row of the chunks, windows of one time hardly any.
        width in prop_oneof![Just(1i64), Just(7), Just(1000)],
        from in prop_oneof![Just(i64::MIN), 0i64..40],
    ) {
        let dictionary = SeriesDictionary::new(3);
        let tags = [TagColumn { id: 9, name: "host".into() }];
        // Their order by tags is not the order in which they came.
        for host in ["c", "a", "e", "b", "d"] {
            dictionary.add(&SeriesKey::from_sorted([("host", host)]), &tags);
        }
        let view = dictionary.view();
        let window_of = |t: i64| t.div_euclid(width) * width;
        let mut wanted: BTreeMap<i64, Rows> = BTreeMap::new();
        for (series, time, has, number) in chunks.iter().flatten().filter(|r| r.1 >= from) {
            let row = (view.rank[*series as usize], *time);
            let cells = wanted.entry(window_of(*time)).or_default().entry(row).or_default();
            for (cell, _) in cells.iter_mut().zip(has).filter(|(_, has)| **has) {
                *cell = Some(*number);
            }
        }
        let chunks: Vec<_> = (1..).zip(&chunks).map(|(lsn, rows)| chunk(lsn, rows)).collect();
        let filter = RowFilter { time: from..i64::MAX, series: None };
        let runs = sort_chunks(&chunks, &filter, &FIELDS, &view, window_of).unwrap();
        prop_assert_eq!(runs.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        for (start, run) in runs {
            let mut found = Vec::new();
            for span in &run.series {
                let rank = view.rank[view.ordinal(span.sid).unwrap() as usize];
                for row in span.start as usize..(span.start + span.rows) as usize {
                    let column = |i: usize| array_value_to_string(run.batch.column(i), row).unwrap();
                    let time = run.batch.column(0).as_primitive::<TimestampNanosecondType>();
                    let cells: Vec<String> = (1..=FIELDS.len()).map(column).collect();
                    found.push(((rank, time.value(row)), cells));
                }
            }
            let cell = |((_, ty), number): (&(u32, FieldType), &Option<i16>)| {
                number.map_or_else(String::new, |n| shown(*ty, n))
            };
            let rows = wanted[&start].iter();
            let rows: Vec<_> =
                rows.map(|(row, cells)| (*row, FIELDS.iter().zip(cells).map(cell).collect::<Vec<_>>())).collect();
            prop_assert_eq!(found, rows);
        }
    }
}

#[test]
fn few_rows_of_much_are_looked_for_and_most_of_it_is_moved() {
    let rows: Vec<Row> = (0..100).map(|t| (0, t, [true; 5], 1)).collect();
    let chunks = [chunk(1, &rows)];
    let window =
        |rows: u32| Window { places: (0..rows).map(|row| (0, row)).collect(), ..Window::default() };
    assert!(Moves::new(&chunks, &window(25)).is_some());
    assert!(Moves::new(&chunks, &window(24)).is_none());
}
