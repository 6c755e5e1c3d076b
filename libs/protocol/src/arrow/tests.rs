//! Tests of `arrow.rs`: what goes in comes back, and hostile input is an error.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryArray, DictionaryArray, Float32Array, Float64Array, Int16Array, Int64Array,
        LargeStringArray, NullArray, RecordBatch, StringArray, StringViewArray,
        TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array,
    },
    datatypes::{Field, Int8Type, Schema},
};
use expect_test::{Expect, expect};

use super::*;
use crate::batch::{RowLimits, TableBatch};

/// Columns as `name` or `name:role`.
fn record(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let field = |(name, array): &(&str, ArrayRef)| {
        let (name, role) = name.split_once(':').map_or((*name, None), |(n, r)| (n, Some(r)));
        let field = Field::new(name, array.data_type().clone(), true);
        match role {
            None => field,
            Some(role) => field.with_metadata([(ROLE.to_owned(), role.to_owned())].into()),
        }
    };
    let fields: Vec<Field> = columns.iter().map(field).collect();
    let metadata = [(TABLE.to_owned(), "t".to_owned()), (DATABASE.to_owned(), "d".to_owned())];
    let schema = Schema::new_with_metadata(fields, metadata.into());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, a)| a).collect()).unwrap()
}

/// As it arrives over Flight: encoded to IPC and decoded.
pub(crate) fn through_a_stream(record: &RecordBatch) -> RecordBatch {
    let mut bytes = Vec::new();
    let mut writer =
        arrow::ipc::writer::StreamWriter::try_new(&mut bytes, record.schema_ref()).unwrap();
    writer.write(record).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let mut reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).unwrap();
    reader.next().unwrap().unwrap()
}

fn ns(values: &[i64]) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from(values.to_vec()))
}

fn show(batch: &TableBatch) -> String {
    let mut out = Vec::new();
    crate::line::write_lines(batch, &mut out);
    String::from_utf8(out).unwrap()
}

fn check(batch: &RecordBatch, expect: Expect) {
    let said = match from_record_batch(batch, &RowLimits::default()) {
        Err(e) => format!("{e}\n"),
        Ok((database, batch, refusals)) => {
            let mut out = format!("database {database}\n{}", show(&batch));
            for r in refusals {
                out += &format!("refused row {}, {:?}: {}\n", r.line, r.code, r.reason);
            }
            out
        }
    };
    expect.assert_eq(&said);
}

#[test]
fn a_row_is_shown_as_the_line_that_would_bring_it() {
    let host: DictionaryArray<Int8Type> = [Some("a b"), None].into_iter().collect();
    let batch = through_a_stream(&record(vec![
        ("time", Arc::new(TimestampMillisecondArray::from(vec![Some(1), None]))),
        ("host", Arc::new(host)),
        ("f", Arc::new(Float64Array::from(vec![1.5, f64::NAN]))),
        ("i", Arc::new(Int16Array::from(vec![Some(-3), None]))),
        ("u", Arc::new(UInt8Array::from(vec![3, 4]))),
        ("s", Arc::new(StringViewArray::from(vec!["say \"hi\"", ""]))),
    ]));
    let line = |row| String::from_utf8(row_as_line(&batch, row)).unwrap();
    assert_eq!(line(0), r#"t,host=a\ b f=1.5e0,i=-3i,u=3u,s="say \"hi\"" 1000000"#);
    assert_eq!(line(1), r#"t f=NaN,u=4u,s="""#);
    assert_eq!(line(2), "");
    let (_, taken, refused) = from_record_batch(&batch, &RowLimits::default()).unwrap();
    let parsed = crate::line::parse(line(0).as_bytes(), &crate::line::LineOptions::default());
    assert_eq!(show(&parsed.tables[0]), show(&taken), "the line brings the same row");
    assert_eq!(refused.len(), 1);
}

#[test]
fn what_a_python_client_would_send_is_taken() {
    let host: DictionaryArray<Int8Type> =
        [Some("a"), Some("b"), None, Some("a")].into_iter().collect();
    check(
        &record(vec![
            (
                "time",
                Arc::new(TimestampMillisecondArray::from(vec![1, 2, 3, 4]).with_timezone("UTC")),
            ),
            ("host", Arc::new(host)),
            (
                "site:tag",
                Arc::new(LargeStringArray::from(vec![Some("x"), Some(""), None, Some("x")])),
            ),
            ("rack:tag", Arc::new(StringViewArray::from(vec!["1", "1", "1", "1"]))),
            ("f", Arc::new(Float32Array::from(vec![Some(0.5), None, None, Some(1.0)]))),
            ("i", Arc::new(Int16Array::from(vec![Some(-1), Some(2), None, None]))),
            ("u", Arc::new(UInt8Array::from(vec![255, 0, 1, 2]))),
            ("s", Arc::new(StringArray::from(vec![Some("say \"hi\""), None, Some(""), None]))),
            ("nothing", Arc::new(NullArray::new(4))),
        ]),
        expect![[r#"
            database d
            t,host=a,rack=1,site=x f=0.5,i=-1i,u=255u,s="say \"hi\"" 1000000
            t,host=b,rack=1 i=2i,u=0u 2000000
            t,rack=1 u=1u,s="" 3000000
            t,host=a,rack=1,site=x f=1,u=2u 4000000
        "#]],
    );
}

#[test]
fn d4_bad_rows_are_named_and_the_rest_kept() {
    let long = "x".repeat(65 * 1024);
    check(
        &record(vec![
            (
                "time",
                Arc::new(TimestampSecondArray::from(vec![
                    Some(1),
                    None,
                    Some(i64::MAX),
                    Some(4),
                    Some(5),
                    Some(6),
                    Some(7),
                    Some(8),
                    Some(9),
                ])),
            ),
            ("a:tag", Arc::new(StringArray::from(vec!["", "", "", "", "", "", "x\ny", "", "k"]))),
            (
                "f",
                Arc::new(Float64Array::from(vec![
                    Some(1.0),
                    Some(1.0),
                    Some(1.0),
                    Some(f64::NAN),
                    Some(f64::INFINITY),
                    None,
                    Some(7.0),
                    Some(8.0),
                    Some(9.0),
                ])),
            ),
            (
                "s",
                Arc::new(StringArray::from(vec![
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    Some(long.as_str()),
                    None,
                ])),
            ),
            (
                "a:field",
                Arc::new(Int64Array::from(vec![
                    Some(1),
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    Some(9),
                ])),
            ),
        ]),
        expect![[r#"
            database d
            t f=1,a=1i 1000000000
            refused row 2, BadTime: the time is null
            refused row 3, BadTime: time 9223372036854775807 does not fit 64 bits of nanoseconds
            refused row 4, NotFinite: field `f` is NaN; only finite numbers are taken
            refused row 5, NotFinite: field `f` is inf; only finite numbers are taken
            refused row 6, BadValue: the row has no field value; a row needs at least one
            refused row 7, BadValue: the value of tag `a` holds a line feed
            refused row 8, TooLong: field `s` has 66560 bytes, at most 65536 are taken
            refused row 9, BadName: `a` is a tag and a field of the same row
        "#]],
    );
}

#[test]
fn wrong_columns_are_refused_with_a_sentence() {
    let one = || -> ArrayRef { Arc::new(Int64Array::from(vec![1])) };
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["x"])) };
    check(
        &record(vec![("v", one())]),
        expect![[r#"
        there is no column `time` of type Timestamp
    "#]],
    );
    check(
        &record(vec![("time", one()), ("v", one())]),
        expect![[r#"
        column `time` has type Int64; the time is a Timestamp of any unit, in UTC or without a zone
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("b", Arc::new(BinaryArray::from(vec![&b"x"[..]])))]),
        expect![[r#"
        column `b` has type Binary; a field is an integer, Float32, Float64, Boolean or text
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("k:tag", one())]),
        expect![[r#"
        column `k` has type Int64; a tag is text: Utf8, LargeUtf8, Utf8View or a dictionary of them
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("k:colour", one())]),
        expect![[r#"
        column `k` has role `colour`; it is `time`, `tag` or `field`
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("v", one()), ("v", one())]),
        expect![[r#"
        column `v` occurs twice
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("k:tag", text()), ("k:tag", text())]),
        expect![[r#"
        column `k` occurs twice
    "#]],
    );
    check(
        &record(vec![("time", ns(&[1])), ("__sid", one())]),
        expect![[r#"
        field `__sid` is refused: names that start with `__` are reserved
    "#]],
    );
    let bare = Schema::new(vec![Field::new("time", ns(&[]).data_type().clone(), true)]);
    check(
        &RecordBatch::try_new(Arc::new(bare), vec![ns(&[1])]).unwrap(),
        expect![[r#"
        the schema's metadata lacks `millrace:table`: name the table there
    "#]],
    );
}

#[test]
fn a_dictionary_that_repeats_a_value_makes_one_series() {
    let keys = arrow::array::Int32Array::from(vec![0, 1, 2]);
    let values = StringArray::from(vec!["a", "a", "b"]);
    let host = DictionaryArray::new(keys, Arc::new(values));
    let batch = record(vec![
        ("time", ns(&[1, 2, 3])),
        ("host", Arc::new(host)),
        ("v", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ]);
    let (_, batch, _) = from_record_batch(&batch, &RowLimits::default()).unwrap();
    assert_eq!(batch.series, [0, 0, 1]);
    assert_eq!(batch.series_keys.len(), 2);
}

#[test]
fn a_value_that_many_rows_share_is_charged_for_each() {
    let text = "x".repeat(64 * 1024);
    let rows = TEXT_BYTES_MAX / text.len() + 1;
    let keys = arrow::array::Int32Array::from(vec![0; rows]);
    let shared = DictionaryArray::new(keys, Arc::new(StringArray::from(vec![text])));
    let batch = record(vec![("time", ns(&vec![1; rows])), ("s:field", Arc::new(shared))]);
    let refused = from_record_batch(&batch, &RowLimits::default()).unwrap_err();
    assert!(matches!(refused, ArrowShape::TooLarge { .. }), "{refused}");
}

#[test]
fn the_first_hundred_refusals_are_listed_and_all_are_counted() {
    let bad: Vec<f64> = (0..1000).map(|i| if i % 2 == 0 { f64::NAN } else { 1.0 }).collect();
    let none: Vec<Option<i64>> = (0..1000).map(|i| (i >= 20).then_some(i)).collect();
    let batch = record(vec![
        ("time", Arc::new(TimestampNanosecondArray::from(none))),
        ("f", Arc::new(Float64Array::from(bad))),
    ]);
    let (_, kept, refusals) = from_record_batch(&batch, &RowLimits::default()).unwrap();
    assert_eq!(kept.rows(), 490);
    assert_eq!(refusals.len(), REFUSALS_LISTED_MAX);
    assert_eq!(refusals.last().unwrap().line, 20 + 2 * 80 - 1);
    assert!(refusals.is_sorted_by_key(|r| r.line));
}

/// The messages of a Flight stream: header and body of each.
fn messages(
    record: &RecordBatch,
    codec: Option<arrow::ipc::CompressionType>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
    let options = IpcWriteOptions::default().try_with_compression(codec).unwrap();
    let generator = IpcDataGenerator::default();
    let mut tracker = DictionaryTracker::new(false);
    let schema = generator.schema_to_bytes_with_dictionary_tracker(
        record.schema_ref(),
        &mut tracker,
        &options,
    );
    let mut context = Default::default();
    let (dictionaries, batch) =
        generator.encode(record, &mut tracker, &options, &mut context).unwrap();
    let parts = std::iter::once(schema).chain(dictionaries).chain([batch]);
    parts.map(|part| (part.ipc_message, part.arrow_data)).collect()
}

fn decode(messages: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<RecordBatch>, IpcError> {
    let mut decoder = MessageDecoder::new();
    let mut out = Vec::new();
    for (header, body) in messages {
        out.extend(decoder.message(header, &arrow::buffer::Buffer::from_vec(body.clone()))?);
    }
    Ok(out)
}

#[test]
fn messages_are_decoded_plain_and_with_zstd_but_not_with_lz4() {
    use arrow::ipc::CompressionType;
    let text = "abc".repeat(100);
    let record = record(vec![
        ("time", ns(&[1, 2])),
        ("k:tag", Arc::new(StringViewArray::from(vec![text.as_str(), "y"]))),
        ("v", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ("s", Arc::new(StringArray::from(vec![text.as_str(), text.as_str()]))),
        ("n", Arc::new(NullArray::new(2))),
    ]);
    for codec in [None, Some(CompressionType::ZSTD)] {
        assert_eq!(decode(&messages(&record, codec)).unwrap().first(), Some(&record));
    }
    let lz4 = messages(&record, Some(CompressionType::LZ4_FRAME));
    assert_eq!(decode(&lz4), Err(IpcError::Codec("LZ4")));
    let whole = messages(&record, None);
    assert_eq!(decode(&whole[1..]), Err(IpcError::Early("record batch")));
    assert_eq!(decode(&[(Vec::new(), Vec::new())]), Ok(Vec::new()));
}

#[test]
fn a_compressed_buffer_that_claims_gigabytes_is_refused_before_they_are_taken() {
    let text = "abc".repeat(1000);
    let record = record(vec![("time", ns(&[1])), ("s", Arc::new(StringArray::from(vec![text])))]);
    let mut messages = messages(&record, Some(arrow::ipc::CompressionType::ZSTD));
    let (_, body) = messages.last_mut().unwrap();
    let claim = 3000i64.to_le_bytes();
    let at = body.windows(8).rposition(|w| w == claim).unwrap();
    body[at..at + 8].copy_from_slice(&(1i64 << 40).to_le_bytes());
    let most = INFLATED_BYTES_MAX;
    assert_eq!(decode(&messages), Err(IpcError::TooLarge { what: "bytes when inflated", most }));
}

#[test]
fn a_schema_of_lists_is_refused_by_its_column() {
    let list =
        arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([Some(
            [Some(1)],
        )]);
    let record = record(vec![("time", ns(&[1])), ("l", Arc::new(list))]);
    let problem =
        "has a type without a meaning here: send integers, floats, booleans, text or timestamps";
    assert_eq!(decode(&messages(&record, None)), Err(IpcError::Column { column: 1, problem }));
}

#[test]
fn dictionaries_that_pile_up_end_the_stream() {
    let text = "x".repeat(20 << 20);
    let host: DictionaryArray<Int8Type> = [Some(text.as_str())].into_iter().collect();
    let record = record(vec![("time", ns(&[1])), ("host", Arc::new(host))]);
    let messages = messages(&record, None);
    let again: Vec<_> = [&messages[..1], &vec![messages[1].clone(); 4]].concat();
    assert!(matches!(
        decode(&again),
        Err(IpcError::TooLarge { what: "bytes of dictionaries", .. })
    ));
}

proptest::proptest! {
    /// Damaged messages are an error or a batch whose rows are judged; nothing panics outside of
    /// the fence.
    #[test]
    fn damaged_messages_are_errors_or_consistent_batches(
        batch in crate::frame::tests::batch(),
        zstd in proptest::prelude::any::<bool>(),
        flips in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..8), 1..4),
    ) {
        let record = to_record_batch(&batch, "d").unwrap();
        let mut messages = messages(&record, zstd.then_some(arrow::ipc::CompressionType::ZSTD));
        for (at, bit) in flips {
            let at = at.index(messages.iter().map(|(h, b)| h.len() + b.len()).sum());
            let mut bytes = messages.iter_mut().flat_map(|(h, b)| h.iter_mut().chain(b));
            *bytes.nth(at).unwrap() ^= 1 << bit;
        }
        for record in decode(&messages).unwrap_or_default() {
            if let Ok((_, batch, _)) = from_record_batch(&record, &RowLimits::default()) {
                proptest::prop_assert!(batch.check().is_ok());
            }
        }
    }
}
