//! Between the reference's words and the store's: rows to batches, scans to rows.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayAccessor, ArrayRef, AsArray, StringArray},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use futures::{TryStreamExt, executor::block_on};
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    value::{FieldType, FieldValues},
};

use super::reference::{Cell, Fields, Row, Tags, Value};
use crate::{ColumnRef, ScanRequest, TableSnapshot};

fn type_of(value: &Value) -> FieldType {
    match value {
        Value::Float(_) => FieldType::F64,
        Value::Int(_) => FieldType::I64,
        Value::Flag(_) => FieldType::Bool,
        Value::Text(_) => FieldType::Utf8,
    }
}

fn push(column: &mut FieldColumn, value: Option<&Value>) {
    column.present.push(value.is_some());
    match (&mut column.values, value) {
        (FieldValues::F64(v), Some(Value::Float(bits))) => v.push(f64::from_bits(*bits)),
        (FieldValues::I64(v), Some(Value::Int(x))) => v.push(*x),
        (FieldValues::Bool(v), Some(Value::Flag(x))) => v.push(*x),
        (FieldValues::Utf8(v), Some(Value::Text(x))) => v.push(x),
        (values, _) => values.push_absent(),
    }
}

/// Batches by table; rows numbered from 1 over the whole write, in order.
pub fn batches(rows: &[Row]) -> Vec<TableBatch> {
    let mut tables: BTreeMap<&str, Vec<(u32, &Row)>> = BTreeMap::new();
    for (row, line) in rows.iter().zip(1u32..) {
        tables.entry(row.table).or_default().push((line, row));
    }
    tables.into_iter().map(|(table, rows)| batch(table, &rows)).collect()
}

fn batch(table: &str, rows: &[(u32, &Row)]) -> TableBatch {
    let mut out = TableBatch { table: table.to_owned(), ..TableBatch::default() };
    let mut columns: BTreeMap<(&str, FieldType), FieldColumn> = BTreeMap::new();
    for (_, row) in rows {
        for (name, value) in &row.fields {
            let of = type_of(value);
            let fresh = || FieldColumn::new(name.as_str(), of);
            columns.entry((name.as_str(), of)).or_insert_with(fresh);
        }
    }
    for (line, row) in rows {
        let key = SeriesKey::from_sorted(row.tags.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let known = out.series_keys.iter().position(|k| *k == key);
        let series = known.unwrap_or_else(|| {
            out.series_keys.push(key);
            out.series_keys.len() - 1
        });
        out.time.push(row.time);
        out.series.push(series as u32);
        out.line.push(*line);
        for ((name, of), column) in &mut columns {
            push(column, row.fields.get(*name).filter(|v| type_of(v) == *of));
        }
    }
    out.fields = columns.into_values().collect();
    out
}

/// What a scan of one table shows; fails if it cannot be read or shows a row twice.
pub fn read(
    tenant: u8,
    name: &str,
    table: &std::sync::Arc<TableSnapshot>,
    shape: impl FnOnce(ScanRequest) -> ScanRequest,
) -> Result<BTreeMap<Cell, Fields>, String> {
    let (tags, fields) = (&table.schema.tags, &table.schema.fields);
    let mut columns = vec![ColumnRef::Time];
    columns.extend((0..tags.len()).map(ColumnRef::Tag));
    columns.extend((0..fields.len()).map(ColumnRef::Field));
    let scan = block_on(table.scan(shape(ScanRequest::all(columns)))).map_err(|e| e.to_string())?;
    let mut out = BTreeMap::new();
    for stream in scan.streams() {
        let batches: Vec<_> = block_on(stream.try_collect()).map_err(|e| e.to_string())?;
        for batch in batches {
            let time = batch.column(0).as_primitive::<TimestampNanosecondType>();
            for row in 0..batch.num_rows() {
                let mut series: Tags = Vec::new();
                for (tag, column) in tags.iter().zip(batch.columns().iter().skip(1)) {
                    series.extend(tag_at(column, row).map(|value| (tag.name.clone(), value)));
                }
                series.sort();
                let mut values = Fields::new();
                for (field, column) in
                    fields.iter().zip(batch.columns().iter().skip(1 + tags.len()))
                {
                    values.extend(value_at(column, field.ty, row).map(|v| (field.name.clone(), v)));
                }
                let cell = (tenant, name.to_owned(), series, time.value(row));
                if out.insert(cell.clone(), values).is_some() {
                    return Err(format!("doubled: {cell:?} came twice"));
                }
            }
        }
    }
    Ok(out)
}

fn tag_at(column: &ArrayRef, row: usize) -> Option<String> {
    let column = column.as_dictionary::<Int32Type>();
    let texts = column.downcast_dict::<StringArray>()?;
    column.is_valid(row).then(|| texts.value(row).to_owned())
}

fn value_at(column: &ArrayRef, of: FieldType, row: usize) -> Option<Value> {
    column.is_valid(row).then(|| match of {
        FieldType::F64 => Value::Float(column.as_primitive::<Float64Type>().value(row).to_bits()),
        FieldType::I64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
        FieldType::Bool => Value::Flag(column.as_boolean().value(row)),
        FieldType::Utf8 => Value::Text(column.as_string::<i32>().value(row).to_owned()),
        FieldType::U64 => unreachable!("no client of the simulation sends unsigned numbers"),
    })
}
