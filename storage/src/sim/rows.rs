//! From rows to batches and back.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int32Type, TimestampNanosecondType},
};
use futures::TryStreamExt;
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    value::{FieldType, FieldValues},
};

use super::model::{Model, Row};
use crate::{ColumnRef, ScanRequest, TenantSnapshot};

/// Batches by table, rows numbered from 1 over the whole write, in order.
pub fn batches(rows: &[Row]) -> Vec<TableBatch> {
    let mut tables: BTreeMap<&str, TableBatch> = BTreeMap::new();
    for (row, line) in rows.iter().zip(1u32..) {
        let batch = tables.entry(row.table).or_insert_with(|| TableBatch {
            table: row.table.to_owned(),
            fields: vec![
                FieldColumn::new("a", FieldType::F64),
                FieldColumn::new("b", FieldType::Utf8),
            ],
            ..TableBatch::default()
        });
        let key = SeriesKey::from_sorted([("host", row.host.as_str())]);
        let series = match batch.series_keys.iter().position(|k| *k == key) {
            Some(at) => at,
            None => {
                batch.series_keys.push(key);
                batch.series_keys.len() - 1
            }
        };
        batch.time.push(row.time);
        batch.series.push(series as u32);
        batch.line.push(line);
        if let FieldValues::F64(v) = &mut batch.fields[0].values {
            v.push(row.a.unwrap_or(0.0));
        }
        batch.fields[0].present.push(row.a.is_some());
        if let FieldValues::Utf8(v) = &mut batch.fields[1].values {
            v.push(row.b.as_deref().unwrap_or(""));
        }
        batch.fields[1].present.push(row.b.is_some());
    }
    tables.into_values().collect()
}

/// Everything a snapshot shows, through the scan; panics if a row comes twice.
pub fn read(snapshot: &TenantSnapshot, request: impl Fn(Vec<ColumnRef>) -> ScanRequest) -> Model {
    let mut out = Model::default();
    for tables in snapshot.databases.values() {
        for (name, table) in tables {
            let at = |n: &str| table.schema.fields.iter().position(|f| f.name == n);
            let mut columns = vec![ColumnRef::Tag(0), ColumnRef::Time];
            columns.extend(["a", "b"].iter().filter_map(|n| at(n)).map(ColumnRef::Field));
            let scan = futures::executor::block_on(table.scan(request(columns))).unwrap();
            for stream in scan.streams() {
                let batches: Vec<_> = futures::executor::block_on(stream.try_collect()).unwrap();
                for batch in batches {
                    let host = batch.column(0).as_dictionary::<Int32Type>();
                    let host = host.downcast_dict::<arrow::array::StringArray>().unwrap();
                    let time = batch.column(1).as_primitive::<TimestampNanosecondType>();
                    let a = batch.column_by_name("a").map(|c| c.as_primitive::<Float64Type>());
                    let b = batch.column_by_name("b").map(|c| c.as_string::<i32>());
                    for row in 0..batch.num_rows() {
                        let value = (
                            a.filter(|c| c.is_valid(row)).map(|c| c.value(row)),
                            b.filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned()),
                        );
                        let host = arrow::array::ArrayAccessor::value(&host, row).to_owned();
                        let cell = (name.clone(), host, time.value(row));
                        assert!(out.0.insert(cell.clone(), value).is_none(), "{cell:?} came twice");
                    }
                }
            }
        }
    }
    out
}
