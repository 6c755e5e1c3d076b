//! Columns and series of writes that fail, of frames that are half known, and of odd names.

use std::collections::BTreeSet;

use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    ids::SeqNo,
    stream::PutHeader,
    value::{FieldType, FieldValues},
};

use super::world::{TENANT, World};
use crate::{Origin, Receipt, WriteError, WriteRequest};

/// One row of table `cpu`: tags, field `v`, time, and its line in the frame.
fn row(tags: &[(&str, &str)], v: f64, time: i64, line: u32) -> TableBatch {
    let mut field = FieldColumn::new("v", FieldType::F64);
    field.values = FieldValues::F64(vec![v]);
    field.present.push(true);
    TableBatch {
        table: "cpu".into(),
        time: vec![time],
        series: vec![0],
        series_keys: vec![SeriesKey::from_sorted(tags.iter().copied())],
        fields: vec![field],
        line: vec![line],
    }
}

fn request(origin: Origin, tables: Vec<TableBatch>) -> WriteRequest {
    WriteRequest {
        tenant: TENANT,
        database: "default".into(),
        origin,
        tables,
        sender: Default::default(),
    }
}

fn write(w: &mut World, tables: Vec<TableBatch>) -> Result<Receipt, WriteError> {
    w.shard().write(vec![request(Origin::Plain, tables)]).remove(0)
}

/// The table's tag names, and its series as `name=value` lists.
fn shape(w: &mut World) -> (Vec<String>, BTreeSet<String>) {
    let snapshot = w.shard().snapshot(TENANT).unwrap();
    let Some(table) = snapshot.databases.get("default").and_then(|d| d.get("cpu")) else {
        return Default::default();
    };
    let tags = table.schema.tags.iter().map(|t| t.name.clone()).collect();
    let text = |key: &SeriesKey| {
        key.tags().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    };
    (tags, table.series.entries.iter().map(|e| text(&e.key)).collect())
}

const PLAIN: &[(&str, &str)] = &[("host", "a")];
const ZONED: &[(&str, &str)] = &[("host", "a"), ("zone", "z")];

/// A write that brings a tag fails, a flush stores its series, and after a start the client sends
/// it again: the tag must have its column.
#[test]
fn d1_a_tag_that_came_with_a_failed_write_has_a_column_when_it_is_sent_again() {
    for op in 1..=2 {
        let mut w = World::seeded(1);
        w.open().unwrap();
        write(&mut w, vec![row(PLAIN, 1.0, 1, 1)]).unwrap();
        w.fail_operation(op);
        let failed = write(&mut w, vec![row(ZONED, 2.0, 1, 1)]);
        assert!(failed.is_err(), "operation {op}");
        assert!(w.flush());
        w.crash();
        w.open().unwrap();
        write(&mut w, vec![row(ZONED, 2.0, 1, 1)]).unwrap();
        let (tags, series) = shape(&mut w);
        let when = format!("operation {op}, {failed:?}");
        assert_eq!(tags, ["host", "zone"], "{when}");
        assert!(series.contains("host=a,zone=z"), "{when}: {series:?}");
        assert!(w.flush());
        w.crash();
        w.open().unwrap();
        assert_eq!(shape(&mut w).0, ["host", "zone"], "{when}, after a second start");
    }
}

#[test]
fn a_table_whose_only_write_failed_does_not_come_to_be() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    w.fail_operation(1);
    assert!(write(&mut w, vec![row(PLAIN, 1.0, 1, 1)]).is_err());
    let other = TableBatch { table: "other".into(), ..row(PLAIN, 1.0, 1, 1) };
    write(&mut w, vec![other]).unwrap();
    assert!(w.flush());
    w.crash();
    w.open().unwrap();
    let snapshot = w.shard().snapshot(TENANT).unwrap();
    let tables: Vec<_> = snapshot.databases["default"].keys().cloned().collect();
    assert_eq!(tables, ["other"]);
}

/// Frames 1..=5 and 8..=9 in one group whose sync fails: nothing is durable, and no answer may
/// say otherwise.
#[test]
fn d2_a_hole_is_answered_with_the_durable_mark_and_not_the_pending_one() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    let frame = |lo, hi| {
        let header = PutHeader { seq_hi: SeqNo(hi), ..w.header(lo, 1) };
        request(Origin::Stream(header), vec![row(PLAIN, 1.0, lo as i64, 1)])
    };
    let group = vec![frame(1, 5), frame(8, 9)];
    w.fail_operation(1);
    let answers = w.shard().write(group);
    assert!(matches!(answers[0], Err(WriteError::Log(_))), "{:?}", answers[0]);
    match &answers[1] {
        Err(WriteError::Missing { durable, .. }) => assert_eq!(*durable, SeqNo(0)),
        other => panic!("a hole is refused, not {other:?}"),
    }
}

/// A frame that numbers more rows than 32 bits count, of which the first are known.
#[test]
fn d2_known_rows_of_a_frame_with_huge_numbers_are_not_applied_again() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    let known = 1u64 << 32;
    let header = |hi| PutHeader { seq_hi: SeqNo(hi), ..w.header(1, 1) };
    let frames = [
        request(Origin::Stream(header(known)), vec![row(PLAIN, 1.0, 1, 1)]),
        request(Origin::Plain, vec![row(PLAIN, 2.0, 1, 1)]),
        request(Origin::Stream(header(known + 5)), vec![row(PLAIN, 1.0, 1, 1)]),
    ];
    for frame in frames {
        w.shard().write(vec![frame]).remove(0).unwrap();
    }
    for when in ["before", "after"] {
        let snapshot = w.shard().snapshot(TENANT).unwrap();
        let table = &snapshot.databases["default"]["cpu"];
        let columns = vec![crate::ColumnRef::Field(0)];
        let scan =
            futures::executor::block_on(table.scan(crate::ScanRequest::all(columns))).unwrap();
        let stream = scan.stream(0);
        let batches: Vec<_> =
            futures::executor::block_on(futures::TryStreamExt::try_collect(stream)).unwrap();
        let batches: Vec<arrow::array::RecordBatch> = batches;
        let values = arrow::array::AsArray::as_primitive::<arrow::datatypes::Float64Type>(
            batches[0].column(0),
        );
        assert_eq!(values.values().as_ref(), [2.0], "{when} a restart: the later write counts");
        w.crash();
        w.open().unwrap();
    }
}

/// Names that the column file uses itself.
#[test]
fn d4_a_field_or_tag_named_like_a_built_in_column_is_refused_and_flushes_go_on() {
    for name in ["time", "__sid"] {
        let mut w = World::seeded(1);
        w.open().unwrap();
        write(&mut w, vec![row(PLAIN, 1.0, 1, 1)]).unwrap();
        let mut field = row(PLAIN, 2.0, 2, 1);
        field.fields[0].name = name.into();
        let tag = row(&[("host", "a"), (name, "x")], 3.0, 3, 1);
        for batch in [field, tag] {
            let receipt = write(&mut w, vec![batch]).unwrap();
            assert_eq!((receipt.rows(), receipt.refused()), (0, 1), "{name}");
            let reason = &receipt.refusals()[0].reason;
            assert!(reason.contains(name) && reason.contains("rename"), "{reason}");
        }
        assert!(w.flush(), "{name}");
        w.crash();
        w.open().unwrap();
        assert_eq!(shape(&mut w).0, ["host"], "{name}");
    }
}
