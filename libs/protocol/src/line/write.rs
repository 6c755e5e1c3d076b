//! A batch as line protocol, for exports and tests.
//!
//! Owns: the escapes. What it writes, the parser reads back to the same rows.

use std::io::Write;

use crate::{
    batch::TableBatch,
    value::{FieldType, FieldValues},
};

/// Appends one line per row, times in nanoseconds. A row without any value has no line, since
/// line protocol has none for it; NaN and infinite values, which no decoder lets in, are left out.
pub fn write_lines(batch: &TableBatch, out: &mut Vec<u8>) {
    let prefixes: Vec<Vec<u8>> = batch
        .series_keys
        .iter()
        .map(|key| {
            let mut prefix = Vec::new();
            escape(&batch.table, b", \\", &mut prefix);
            for (name, value) in key.tags() {
                prefix.push(b',');
                escape(name, b",= \\", &mut prefix);
                prefix.push(b'=');
                escape(value, b",= \\", &mut prefix);
            }
            prefix
        })
        .collect();
    let names: Vec<Vec<u8>> = batch
        .fields
        .iter()
        .map(|field| {
            let mut name = Vec::new();
            escape(&field.name, b",= \\", &mut name);
            name.push(b'=');
            name
        })
        .collect();
    for (row, (time, series)) in batch.time.iter().zip(&batch.series).enumerate() {
        let start = out.len();
        out.extend_from_slice(prefixes.get(*series as usize).map_or(&[][..], Vec::as_slice));
        let mut separator = b' ';
        for (field, name) in batch.fields.iter().zip(&names) {
            if !field.present.get(row) || !is_finite(&field.values, row) {
                continue;
            }
            out.push(separator);
            out.extend_from_slice(name);
            write_value(&field.values, row, out);
            separator = b',';
        }
        if separator == b' ' {
            out.truncate(start);
        } else {
            put(out, format_args!(" {time}\n"));
        }
    }
}

pub(crate) fn escape(text: &str, special: &[u8], out: &mut Vec<u8>) {
    for b in text.bytes() {
        if special.contains(&b) {
            out.push(b'\\');
        }
        out.push(b);
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    out.write_fmt(text).unwrap_or_default();
}

fn is_finite(values: &FieldValues, row: usize) -> bool {
    match values {
        FieldValues::F64(v) => v.get(row).is_some_and(|v| v.is_finite()),
        other => other.field_type() != FieldType::F64,
    }
}

fn write_value(values: &FieldValues, row: usize, out: &mut Vec<u8>) {
    match values {
        FieldValues::F64(v) => {
            let v = v.get(row).copied().unwrap_or_default();
            // Beyond these the plain form is a row of zeros.
            if v != 0.0 && !(1e-5..1e16).contains(&v.abs()) {
                put(out, format_args!("{v:e}"));
            } else {
                put(out, format_args!("{v}"));
            }
        }
        FieldValues::I64(v) => {
            put(out, format_args!("{}i", v.get(row).copied().unwrap_or_default()))
        }
        FieldValues::U64(v) => {
            put(out, format_args!("{}u", v.get(row).copied().unwrap_or_default()))
        }
        FieldValues::Bool(v) => {
            put(out, format_args!("{}", v.get(row).copied().unwrap_or_default()))
        }
        FieldValues::Utf8(v) => {
            out.push(b'"');
            escape(v.get(row), b"\"\\", out);
            out.push(b'"');
        }
    }
}
