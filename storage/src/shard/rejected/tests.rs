//! Refused rows as rows, through the shard: once, after a crash, within the caps.

use std::borrow::Cow;

use arrow::{array::AsArray, datatypes::Int64Type};
use futures::{TryStreamExt, executor::block_on};
use millrace_protocol::{ids::SeqNo, stream::PutHeader};

use super::*;
use crate::{
    ColumnRef, Origin, Receipt, ScanRequest, WriteRequest,
    sim::world::{TENANT, World},
};

const NOW_NS: i64 = 1000 * 3600 * 1_000_000_000;

/// Numbers every line, so that a test sees which one was kept.
#[derive(Debug)]
struct Numbered;

impl RawRows for Numbered {
    fn raw(&self, line: u32) -> Cow<'_, [u8]> {
        Cow::Owned(format!("raw {line} {}", "x".repeat(line as usize)).into_bytes())
    }
}

fn refused(line: u32) -> Rejected {
    let reason = "because".to_owned();
    Rejected { table: Some("cpu".into()), line, column: 3, code: RefusalCode::Syntax, reason }
}

fn sender(lines: std::ops::RangeInclusive<u32>) -> Sender {
    let listed: Vec<_> = lines.map(refused).collect();
    let count = listed.len() as u64;
    let rejects = Rejects { listed, count, raw: Arc::new(Numbered), precision: "ns" };
    Sender { source: "press".into(), rejects: Some(rejects) }
}

/// Rows of table `cpu`, one per (line, time).
fn rows(rows: &[(u32, i64)]) -> TableBatch {
    TableBatch {
        table: "cpu".into(),
        time: rows.iter().map(|r| r.1).collect(),
        series: vec![0; rows.len()],
        series_keys: vec![SeriesKey::from_sorted([("host", "a")])],
        fields: vec![integers("v", rows.iter().map(|r| i64::from(r.0)))],
        line: rows.iter().map(|r| r.0).collect(),
    }
}

fn write(w: &mut World, origin: Origin, tables: Vec<TableBatch>, sender: Sender) -> Receipt {
    let request = WriteRequest { tenant: TENANT, database: "d".into(), origin, tables, sender };
    w.shard().write(vec![request]).remove(0).unwrap()
}

fn frame(w: &World, lo: u64, hi: u64) -> Origin {
    Origin::Stream(PutHeader { seq_hi: SeqNo(hi), ..w.header(lo, 1) })
}

/// Line numbers and raw texts in `_rejected`, in order of time.
fn recorded(w: &mut World) -> Vec<(i64, String)> {
    let snapshot = w.shard().snapshot(TENANT).unwrap();
    let Some(table) = snapshot.databases.get("d").and_then(|d| d.get(REJECTED_TABLE)) else {
        return Vec::new();
    };
    let place = |name| table.schema.fields.iter().position(|f| f.name == name).unwrap();
    let columns = ["line_number", "raw"].map(|n| ColumnRef::Field(place(n)));
    let columns = [vec![ColumnRef::Time], columns.to_vec()].concat();
    let scan = block_on(table.scan(ScanRequest::all(columns))).unwrap();
    let mut out = Vec::new();
    for i in 0..scan.partitions() {
        let batches: Vec<arrow::array::RecordBatch> =
            block_on(scan.stream(i).try_collect()).unwrap();
        for b in batches {
            let times = b.column(0).as_primitive::<arrow::datatypes::TimestampNanosecondType>();
            let lines = b.column(1).as_primitive::<Int64Type>();
            let raw = arrow::compute::cast(b.column(2), &arrow::datatypes::DataType::Utf8).unwrap();
            let raw = raw.as_string::<i32>();
            for i in 0..b.num_rows() {
                out.push((times.value(i), lines.value(i), raw.value(i).to_owned()));
            }
        }
    }
    out.sort();
    let times: std::collections::BTreeSet<i64> = out.iter().map(|r| r.0).collect();
    assert_eq!(times.len(), out.len(), "no two rows have one time");
    out.into_iter().map(|(_, line, raw)| (line, raw)).collect()
}

fn lines(w: &mut World) -> Vec<i64> {
    recorded(w).into_iter().map(|(line, _)| line).collect()
}

#[test]
fn d4_what_is_refused_anywhere_is_recorded_with_the_good_rows_and_outlives_a_crash() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    // Line 3 lies in the future, which storage refuses; 2 and 5 were refused before.
    let mut early = sender(2..=2);
    early.rejects.as_mut().unwrap().listed.push(refused(5));
    early.rejects.as_mut().unwrap().count = 2;
    let batch = rows(&[(1, NOW_NS), (3, NOW_NS + DAY_NS), (4, NOW_NS)]);
    let receipt = write(&mut w, Origin::Plain, vec![batch], early);
    assert_eq!((receipt.rows(), receipt.refused()), (2, 1), "storage's own");
    for when in ["before", "after a crash", "after a flush", "after both"] {
        let seen = recorded(&mut w);
        let raw = |n: usize| (n as i64, format!("raw {n} {}", "x".repeat(n)));
        assert_eq!(seen, [raw(2), raw(5), raw(3)], "{when}");
        if when == "after a crash" {
            assert!(w.flush());
        } else {
            w.crash();
            w.open().unwrap();
        }
    }
}

#[test]
fn d2_a_frame_that_is_sent_again_records_its_refusals_once() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    let origin = frame(&w, 1, 4);
    write(&mut w, origin.clone(), vec![rows(&[(1, 1), (4, 4)])], sender(2..=3));
    assert!(write(&mut w, origin, vec![rows(&[(1, 1), (4, 4)])], sender(2..=3)).duplicate());
    assert_eq!(lines(&mut w), [2, 3]);
    // A longer frame over the same rows: line 4 was known as a good row, only 5 is new.
    let longer = frame(&w, 1, 6);
    write(&mut w, longer, vec![rows(&[(1, 1), (4, 4), (6, 6)])], sender(2..=5));
    assert_eq!(lines(&mut w), [2, 3, 5]);
    w.crash();
    w.open().unwrap();
    assert_eq!(lines(&mut w), [2, 3, 5]);
}

#[test]
fn a_body_without_a_good_row_is_recorded_and_one_refused_row_never_replaces_another() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    for _ in 0..2 {
        let receipt = write(&mut w, Origin::Plain, Vec::new(), sender(1..=3));
        assert_eq!(receipt.rows(), 0);
    }
    assert_eq!(lines(&mut w), [1, 2, 3, 1, 2, 3], "the clock stands still, and yet");
    w.crash();
    w.open().unwrap();
    write(&mut w, Origin::Plain, Vec::new(), sender(9..=9));
    assert_eq!(lines(&mut w), [1, 2, 3, 1, 2, 3, 9]);
}

#[test]
fn what_is_over_a_cap_is_dropped_and_counted_and_the_good_rows_stay() {
    let limits = RejectedLimits {
        rows_per_day: 5,
        bytes_per_day: 1 << 20,
        rows_per_write: 3,
        bytes_per_write: 60,
        raw_bytes: 20,
        series: 10,
    };
    let mut allowance = Allowance::default();
    let mut gather = |lines: std::ops::RangeInclusive<u32>, now_ns| {
        let rejects = sender(lines).rejects.unwrap();
        let all = Collector::new(rejects, 0, &mut allowance, &limits, now_ns);
        allowance.rows += all.len() as u64;
        allowance.bytes += all.bytes as u64;
        let cut = all.rows.iter().map(|r| (r.raw.len(), r.raw_bytes)).collect::<Vec<_>>();
        (cut, all.dropped)
    };
    assert_eq!(gather(1..=4, 0), (vec![(7, 7), (8, 8), (9, 9)], 1), "rows of a write");
    assert_eq!(gather(30..=31, 0), (vec![(20, 37), (20, 38)], 0), "bytes of a row");
    assert_eq!(gather(1..=2, DAY_NS - 1), (vec![], 2), "rows of a day");
    assert_eq!(gather(1..=1, DAY_NS), (vec![(7, 7)], 0), "the next day");
}

#[test]
fn a_table_of_refusals_is_bounded_in_series_however_many_tables_are_named() {
    let mut rejects = sender(1..=200).rejects.unwrap();
    for row in &mut rejects.listed {
        row.table = Some(format!("t{}", row.line));
    }
    let mut allowance = Allowance::default();
    let limits = RejectedLimits { series: 0, ..RejectedLimits::default() };
    let all = Collector::new(rejects, 0, &mut allowance, &limits, 0);
    let schema = crate::schema::TableSchema::new(1, REJECTED_TABLE);
    let dictionary = crate::series::dictionary::SeriesDictionary::new(1);
    let table = TableHandle::new("d".into(), schema, dictionary, Vec::new(), false);
    let into = Destination { source: "s", database: "d", table: &table };
    let batch = all.batch(&into, |name| name == "t7", &limits, &mut allowance, 0);
    let names: Vec<_> = batch.series_keys.iter().map(|k| k.get("table_name")).collect();
    assert_eq!(names, [None, Some("t7")]);
}

#[test]
fn text_is_cut_at_a_character() {
    assert_eq!(cut("aäb".as_bytes(), 9), "aäb");
    assert_eq!(cut("aäb".as_bytes(), 2), "a");
    assert_eq!(cut(b"a\xff", 9), "a\u{fffd}");
}
