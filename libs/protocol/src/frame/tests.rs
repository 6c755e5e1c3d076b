//! Tests of `frame.rs`: what goes in comes back, and hostile input is an error.

use proptest::prelude::*;

use super::*;
use crate::batch::SeriesKey;

/// Batches of all field types with holes, times and numbers of all widths.
pub(crate) fn batch() -> impl Strategy<Value = TableBatch> {
    let time = prop_oneof![
        any::<i64>(),
        (0i64..1000).prop_map(|t| t * 1_000_000_000),
        (-50i64..50).prop_map(|t| t * 1_000_000),
        (0i64..70_000).prop_map(|t| t * 1_000),
    ];
    let whole = prop_oneof![any::<i64>(), -100i64..100, 0i64..70_000, 0..5_000_000_000i64];
    let row = (
        time,
        0u32..3,
        proptest::option::of(any::<i32>().prop_map(f64::from)),
        proptest::option::of(whole),
        proptest::option::of(any::<u64>()),
        proptest::option::of(any::<bool>()),
        proptest::option::of("[a-zé]{0,5}"),
    );
    proptest::collection::vec(row, 0..150).prop_map(|rows| {
        let types =
            [FieldType::F64, FieldType::I64, FieldType::U64, FieldType::Bool, FieldType::Utf8];
        let key = |host: &&str| SeriesKey::from_sorted([("host", *host)]);
        let mut batch = TableBatch {
            table: "t".into(),
            series_keys: ["a", "b", "c"].iter().map(key).collect(),
            fields: types.iter().map(|t| FieldColumn::new(t.name(), *t)).collect(),
            ..TableBatch::default()
        };
        for (line, (time, series, f, i, u, b, s)) in (1..).zip(rows) {
            batch.time.push(time);
            batch.series.push(series);
            batch.line.push(line);
            let there = [f.is_some(), i.is_some(), u.is_some(), b.is_some(), s.is_some()];
            for (field, present) in batch.fields.iter_mut().zip(there) {
                match &mut field.values {
                    FieldValues::F64(v) => v.push(f.unwrap_or(0.0)),
                    FieldValues::I64(v) => v.push(i.unwrap_or(0)),
                    FieldValues::U64(v) => v.push(u.unwrap_or(0)),
                    FieldValues::Bool(v) => v.push(b.unwrap_or(false)),
                    FieldValues::Utf8(v) => v.push(s.as_deref().unwrap_or("")),
                }
                field.present.push(present);
            }
        }
        batch
    })
}

fn encoded(batch: &TableBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_batch(batch, &mut bytes);
    bytes
}

/// One table, one field of integers, equal times.
fn integers(values: &[i64]) -> TableBatch {
    TableBatch {
        table: "t".into(),
        time: vec![0; values.len()],
        series: vec![0; values.len()],
        series_keys: vec![SeriesKey::default()],
        fields: vec![FieldColumn {
            name: "v".into(),
            values: FieldValues::I64(values.to_vec()),
            present: Presence::full(values.len()),
        }],
        line: (1..=values.len() as u32).collect(),
    }
}

proptest! {
    #[test]
    fn a_batch_comes_back(batch in batch()) {
        prop_assert_eq!(decode_batch(&encoded(&batch)).unwrap(), batch);
    }

    #[test]
    fn damaged_bytes_are_an_error_or_a_consistent_batch(
        batch in batch(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        let mut bytes = encoded(&batch);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(batch) = decode_batch(&bytes) {
            prop_assert!(batch.check().is_ok());
            // What was read can be written and read again.
            prop_assert!(decode_batch(&encoded(&batch)).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_consistent_batch(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(version) = bytes.first_mut() {
            *version = VERSION;
        }
        if let Ok(batch) = decode_batch(&bytes) {
            prop_assert!(batch.check().is_ok());
        }
    }
}

#[test]
fn every_prefix_of_a_batch_is_refused() {
    let batch = crate::line::parse(
        b"t,host=a,rack=1 f=1.5,i=-3i,u=7u,b=true,s=\"x\" 10\nt i=4i 12\nt,host=b s=\"\xc3\xa9\" 11",
        &crate::line::LineOptions::default(),
    );
    let bytes = encoded(&batch.tables[0]);
    assert_eq!(decode_batch(&bytes).unwrap(), batch.tables[0]);
    for cut in 0..bytes.len() {
        assert!(decode_batch(&bytes[..cut]).is_err(), "prefix of {cut}");
    }
    let more = [bytes.as_slice(), b"x"].concat();
    assert_eq!(decode_batch(&more), Err(FrameError::Trailing(1)));
}

#[test]
fn an_integer_costs_what_its_spread_needs() {
    let bytes = |values: &[i64]| encoded(&integers(values)).len();
    let equal = bytes(&[7; 1000]);
    assert_eq!(bytes(&(7..1007).collect::<Vec<_>>()), equal, "counting up is free");
    let spread = |last: i64| {
        let mut values = vec![i64::MIN; 1000];
        values[500] = i64::MIN.wrapping_add(last);
        bytes(&values) - equal
    };
    assert_eq!(
        [spread(255), spread(256), spread(65_536), spread(1 << 32), spread(-1)],
        [1000, 2000, 4000, 8000, 8000]
    );
}

#[test]
fn long_columns_of_near_numbers_come_back() {
    for base in [0, 1, -1, -200, 255, 256, 1 << 40, i64::MIN, i64::MAX - 255] {
        for spread in [1u64, 7, 200, 255, 256, 70_000] {
            let value = |i: u64| base.wrapping_add((i * 37 % (spread + 1)) as i64);
            for rows in [255, 256, 257, 1000] {
                let batch = integers(&(0..rows).map(value).collect::<Vec<_>>());
                assert_eq!(
                    decode_batch(&encoded(&batch)).unwrap(),
                    batch,
                    "{base} {spread} {rows}"
                );
            }
        }
    }
}

#[test]
fn few_bytes_never_unfold_to_much() {
    // Rows are claimed, and all columns say that they are equal.
    let mut bytes = encoded(&integers(&[7; 1000]));
    let rows = 1 + 2 + 1;
    bytes[rows..rows + 4].copy_from_slice(&(REPEATED_ROWS_MAX as u32 + 1).to_le_bytes());
    assert_eq!(decode_batch(&bytes), Err(FrameError::Invalid("integer width")));
    bytes[rows..rows + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode_batch(&bytes), Err(FrameError::Invalid("row count")));
    // So a long batch of equal values spends a byte per row, and comes back.
    let long = integers(&vec![7; REPEATED_ROWS_MAX + 1]);
    assert_eq!(decode_batch(&encoded(&long)).unwrap(), long);
}

/// The bytes of the example in the format's page, without its comments.
fn example(page: &str) -> Vec<u8> {
    let dump = page.split("```hex\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let digits = |line: &str| line.split('#').next().unwrap_or("").replace(' ', "");
    hex::decode(dump.lines().map(digits).collect::<String>()).unwrap()
}

#[test]
fn the_example_of_the_page_is_what_the_code_reads_and_writes() {
    let bytes = example(include_str!("../../../../docs/formats/batch.md"));
    let batch = decode_batch(&bytes).unwrap();
    let mut lines = Vec::new();
    crate::line::write_lines(&batch, &mut lines);
    expect_test::expect![[r#"
        cpu,host=a usage=0.5,jobs=3i,state="ok" 1700000000000000000
        cpu,host=b jobs=4i 1700000010000000000
        cpu,host=a usage=1.5,jobs=3i,state="hot" 1700000010000000000
    "#]]
    .assert_eq(&String::from_utf8(lines.clone()).unwrap());
    let parsed = crate::line::parse(&lines, &crate::line::LineOptions::default());
    assert_eq!(parsed.tables.first(), Some(&batch));
    assert_eq!(hex::encode(encoded(&batch)), hex::encode(bytes));
}
