//! A row of a record batch as line protocol, for people and for sending it again.
//!
//! Owns: what stands for a row that no batch can hold: a null time is no time, NaN is `NaN`.
//! Never: refuses a row; it was refused already, and this says what it was.

use std::io::Write;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampNanosecondType, UInt64Type},
};

use super::{
    TABLE,
    incoming::{NameRole, TextColumn, role, text_type},
};
use crate::line::escape;

/// Row `row` (from 0) of a batch that [`super::from_record_batch`] has read. Empty if there is no
/// such row.
pub fn row_as_line(batch: &RecordBatch, row: usize) -> Vec<u8> {
    let mut out = Vec::new();
    if row >= batch.num_rows() {
        return out;
    }
    let schema = batch.schema_ref();
    escape(schema.metadata().get(TABLE).map_or("", String::as_str), b", \\", &mut out);
    let (mut fields, mut time) = (Vec::new(), Vec::new());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let array = array.slice(row, 1);
        let Ok(role) = role(field) else { continue };
        if array.is_null(0) || array.data_type() == &DataType::Null {
            continue;
        }
        match role {
            NameRole::Time => time = time_of(&array),
            NameRole::Tag => {
                let column = TextColumn::of(&array);
                if let Some(value) = column.get(0).filter(|v| !v.is_empty()) {
                    out.push(b',');
                    pair(field.name(), &mut out);
                    escape(value, b",= \\", &mut out);
                }
            }
            NameRole::Field => {
                fields.push(if fields.is_empty() { b' ' } else { b',' });
                pair(field.name(), &mut fields);
                value(&array, &mut fields);
            }
        }
    }
    out.append(&mut fields);
    out.append(&mut time);
    out
}

fn pair(name: &str, out: &mut Vec<u8>) {
    escape(name, b",= \\", out);
    out.push(b'=');
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    out.write_fmt(text).unwrap_or_default();
}

/// A time that does not fit nanoseconds is left out, as is one that is null.
fn time_of(array: &ArrayRef) -> Vec<u8> {
    let mut out = Vec::new();
    let ns = cast(array, &DataType::Timestamp(TimeUnit::Nanosecond, None));
    if let Some(ns) = ns.ok().filter(|ns| ns.is_valid(0)) {
        let ns = ns.as_primitive::<TimestampNanosecondType>().values();
        put(&mut out, format_args!(" {}", ns.first().copied().unwrap_or_default()));
    }
    out
}

fn value(array: &ArrayRef, out: &mut Vec<u8>) {
    let as_type = |ty: &DataType| cast(array, ty).ok();
    match array.data_type() {
        ty if text_type(ty).is_some() => {
            out.push(b'"');
            escape(TextColumn::of(array).get(0).unwrap_or(""), b"\"\\", out);
            out.push(b'"');
        }
        DataType::Boolean => put(out, format_args!("{}", array.as_boolean().value(0))),
        ty if ty.is_floating() => {
            if let Some(v) = as_type(&DataType::Float64) {
                put(out, format_args!("{:e}", v.as_primitive::<Float64Type>().value(0)));
            }
        }
        ty if ty.is_unsigned_integer() => {
            if let Some(v) = as_type(&DataType::UInt64) {
                put(out, format_args!("{}u", v.as_primitive::<UInt64Type>().value(0)));
            }
        }
        _ => {
            if let Some(v) = as_type(&DataType::Int64) {
                put(out, format_args!("{}i", v.as_primitive::<Int64Type>().value(0)));
            }
        }
    }
}
