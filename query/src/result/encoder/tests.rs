//! Every format with the values that formats disagree about.

use datafusion::{
    arrow::{
        array::{
            ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int64Array,
            RecordBatch, StringArray, TimestampNanosecondArray, UInt64Array,
        },
        datatypes::{DataType, Field, Int32Type, Schema, TimeUnit},
        ipc::reader::StreamReader,
    },
    parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
};
use futures::{StreamExt, TryStreamExt, executor::block_on};

use super::*;
use crate::{QueryAnswer, result::encode};

/// Three rows: ordinary, extreme, null.
fn odd() -> RecordBatch {
    let tags: DictionaryArray<Int32Type> = [Some("h,1"), Some("h\"2"), None].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("tag", Arc::new(tags)),
        (
            "time",
            Arc::new(
                TimestampNanosecondArray::from(vec![
                    Some(1_767_225_600_000_000_001),
                    Some(-1),
                    None,
                ])
                .with_timezone("UTC"),
            ),
        ),
        ("f", Arc::new(Float64Array::from(vec![Some(1.5), Some(f64::NAN), None]))),
        ("g", Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::INFINITY), None]))),
        ("i", Arc::new(Int64Array::from(vec![Some(-1), Some(i64::MIN), None]))),
        ("u", Arc::new(UInt64Array::from(vec![Some(1), Some(u64::MAX), None]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("s", Arc::new(StringArray::from(vec![Some("é😀\n\t,\""), Some(""), None]))),
        ("x", Arc::new(BinaryArray::from(vec![Some(&[0u8, 255, 10][..]), Some(&[]), None]))),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema, columns.into_iter().map(|(_, c)| c).collect()).unwrap()
}

fn answer(schema: SchemaRef, batches: Vec<Result<RecordBatch, QueryError>>) -> QueryAnswer {
    QueryAnswer { schema, rows: futures::stream::iter(batches).boxed() }
}

fn bytes(format: Format, batches: &[RecordBatch]) -> Vec<u8> {
    let schema = odd().schema();
    let answer = answer(schema, batches.iter().cloned().map(Ok).collect());
    let pieces: Vec<Bytes> = block_on(encode(format, answer).try_collect()).unwrap();
    pieces.concat()
}

fn check(format: Format, expected: expect_test::Expect) {
    expected.assert_eq(&String::from_utf8(bytes(format, &[odd()])).unwrap());
}

#[test]
fn json_has_no_nan_and_leaves_nulls_out() {
    check(
        Format::Json,
        expect_test::expect![[
            r#"[{"tag":"h,1","time":"2026-01-01T00:00:00.000000001Z","f":1.5,"g":-0.0,"i":-1,"u":1,"b":true,"s":"é😀\n\t,\"","x":"00ff0a"},{"tag":"h\"2","time":"1969-12-31T23:59:59.999999999Z","f":null,"g":null,"i":-9223372036854775808,"u":18446744073709551615,"b":false,"s":"","x":""},{}]"#
        ]],
    );
    let parsed: serde_json::Value =
        serde_json::from_slice(&bytes(Format::Json, &[odd(), odd()])).unwrap();
    assert_eq!(parsed.as_array().unwrap().len(), 6);
}

#[test]
fn json_lines_are_one_object_each() {
    check(
        Format::JsonLines,
        expect_test::expect![[r#"
        {"tag":"h,1","time":"2026-01-01T00:00:00.000000001Z","f":1.5,"g":-0.0,"i":-1,"u":1,"b":true,"s":"é😀\n\t,\"","x":"00ff0a"}
        {"tag":"h\"2","time":"1969-12-31T23:59:59.999999999Z","f":null,"g":null,"i":-9223372036854775808,"u":18446744073709551615,"b":false,"s":"","x":""}
        {}
    "#]],
    );
    for line in String::from_utf8(bytes(Format::JsonLines, &[odd()])).unwrap().lines() {
        let parsed: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(parsed.is_object());
    }
}

#[test]
fn csv_quotes_what_needs_it_and_has_one_header() {
    check(
        Format::Csv,
        expect_test::expect![[r#"
        tag,time,f,g,i,u,b,s,x
        "h,1",2026-01-01T00:00:00.000000001Z,1.5,-0.0,-1,1,true,"é😀
        	,""",00ff0a
        "h""2",1969-12-31T23:59:59.999999999Z,NaN,inf,-9223372036854775808,18446744073709551615,false,,
        ,,,,,,,,
    "#]],
    );
    let twice = String::from_utf8(bytes(Format::Csv, &[odd(), odd()])).unwrap();
    assert_eq!(twice.matches("tag,time").count(), 1);
}

#[test]
fn a_pretty_table_is_for_people() {
    check(
        Format::Pretty,
        expect_test::expect![[r#"
        +-----+--------------------------------+-----+------+----------------------+----------------------+-------+-----+--------+
        | tag | time                           | f   | g    | i                    | u                    | b     | s   | x      |
        +-----+--------------------------------+-----+------+----------------------+----------------------+-------+-----+--------+
        | h,1 | 2026-01-01T00:00:00.000000001Z | 1.5 | -0.0 | -1                   | 1                    | true  | é😀 | 00ff0a |
        |     |                                |     |      |                      |                      |       | 	," |        |
        | h"2 | 1969-12-31T23:59:59.999999999Z | NaN | inf  | -9223372036854775808 | 18446744073709551615 | false |     |        |
        |     |                                |     |      |                      |                      |       |     |        |
        +-----+--------------------------------+-----+------+----------------------+----------------------+-------+-----+--------+
    "#]],
    );
}

#[test]
fn arrow_and_parquet_return_what_they_were_given() {
    let arrow = bytes(Format::Arrow, &[odd(), odd()]);
    let read: Vec<RecordBatch> =
        StreamReader::try_new(arrow.as_slice(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(format!("{read:?}"), format!("{:?}", [odd(), odd()]));
    let parquet = Bytes::from(bytes(Format::Parquet, &[odd(), odd()]));
    let reader = ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().build().unwrap();
    let read: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let rows: usize = read.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 6);
    assert_eq!(read[0].schema().field(1).data_type(), &time());
    assert_eq!(format!("{:?}", read[0].column(4).slice(0, 3)), format!("{:?}", odd().column(4)));
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

#[test]
fn no_rows_are_still_a_whole_document() {
    for batches in [vec![], vec![RecordBatch::new_empty(odd().schema())]] {
        assert_eq!(bytes(Format::Json, &batches), b"[]");
        assert_eq!(bytes(Format::JsonLines, &batches), b"");
        assert_eq!(bytes(Format::Csv, &batches), b"tag,time,f,g,i,u,b,s,x\n");
        let arrow = bytes(Format::Arrow, &batches);
        assert_eq!(StreamReader::try_new(arrow.as_slice(), None).unwrap().count(), 0);
        let parquet = Bytes::from(bytes(Format::Parquet, &batches));
        let reader = ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap();
        assert_eq!(reader.schema().fields().len(), 9);
        assert!(String::from_utf8(bytes(Format::Pretty, &batches)).unwrap().contains("| tag"));
    }
}

#[test]
fn a_pretty_table_stops_at_ten_thousand_rows_and_says_so() {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..6000));
    let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let answer = answer(batch.schema(), vec![Ok(batch.clone()), Ok(batch)]);
    let pieces: Vec<Bytes> = block_on(encode(Format::Pretty, answer).try_collect()).unwrap();
    let text = String::from_utf8(pieces.concat()).unwrap();
    assert_eq!(text.lines().count(), 10_000 + 5);
    assert!(text.ends_with("... 2000 more rows\n"));
}

#[test]
fn an_error_in_the_middle_comes_out_as_one() {
    for name in Format::NAMES {
        let format: Format = name.parse().unwrap();
        let batches = vec![Ok(odd()), Err(QueryError::Memory), Ok(odd())];
        let pieces: Vec<Result<Bytes, QueryError>> =
            block_on(encode(format, answer(odd().schema(), batches)).collect());
        let errors: Vec<_> = pieces.iter().filter_map(|p| p.as_ref().err()).collect();
        assert_eq!(errors.len(), 1, "{name}");
        assert!(pieces.last().unwrap().is_err(), "{name}: nothing follows the error");
    }
}

#[test]
fn rows_are_sent_as_they_come() {
    let (send, rows) = futures::channel::mpsc::channel(1);
    let answer = QueryAnswer { schema: odd().schema(), rows: rows.boxed() };
    let mut send = send;
    send.try_send(Ok(odd())).unwrap();
    let mut pieces = encode(Format::JsonLines, answer);
    assert!(block_on(pieces.next()).unwrap().unwrap().ends_with(b"\n"));
    drop(send);
    assert!(block_on(pieces.next()).unwrap().unwrap().is_empty());
    assert!(block_on(pieces.next()).is_none());
}

#[test]
fn an_unknown_format_is_named_with_those_that_exist() {
    let e = "yaml".parse::<Format>().unwrap_err();
    assert_eq!(
        e.to_string(),
        "parameters: format `yaml` is unknown; use one of json, jsonl, csv, arrow, parquet, pretty"
    );
}
