//! A batch as Arrow columns.
//!
//! Owns: the copy. Values go over in bulk; tags are coded once per series, then spread by row.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, PrimitiveArray,
        RecordBatch, RecordBatchOptions, StringArray, TimestampNanosecondArray, UInt64Array,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, Field, Int32Type, Schema, TimeUnit},
};

use super::{ArrowShape, DATABASE, ROLE, TABLE};
use crate::{
    batch::{FieldColumn, Presence, TableBatch},
    value::FieldValues,
};

/// Makes the record batch of a batch; an inconsistent one is an error.
pub fn to_record_batch(batch: &TableBatch, database: &str) -> Result<RecordBatch, ArrowShape> {
    batch.check().map_err(broken)?;
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let utc = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    fields.push(with_role(Field::new("time", utc, false), "time"));
    columns.push(Arc::new(TimestampNanosecondArray::from(batch.time.clone()).with_timezone("UTC")));
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    for (name, array) in tags(batch)? {
        fields.push(with_role(Field::new(name, text.clone(), true), "tag"));
        columns.push(Arc::new(array));
    }
    for field in &batch.fields {
        let array = values(field)?;
        fields.push(with_role(Field::new(&field.name, array.data_type().clone(), true), "field"));
        columns.push(array);
    }
    let metadata =
        [(DATABASE.to_owned(), database.to_owned()), (TABLE.to_owned(), batch.table.clone())];
    let schema = Schema::new_with_metadata(fields, metadata.into());
    let options = RecordBatchOptions::new().with_row_count(Some(batch.rows()));
    RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)
        .map_err(|e| ArrowShape::Columns(e.to_string()))
}

fn with_role(field: Field, role: &str) -> Field {
    field.with_metadata([(ROLE.to_owned(), role.to_owned())].into())
}

fn broken(e: impl std::fmt::Display) -> ArrowShape {
    ArrowShape::Columns(e.to_string())
}

/// One tag: its values in order of first appearance, and each series' code.
struct Tag<'a> {
    values: Vec<&'a str>,
    codes: BTreeMap<&'a str, i32>,
    of_series: Vec<Option<i32>>,
}

/// One dictionary column per tag name that any series has.
fn tags(batch: &TableBatch) -> Result<Vec<(&str, DictionaryArray<Int32Type>)>, ArrowShape> {
    let count = batch.series_keys.len();
    let mut tags: BTreeMap<&str, Tag<'_>> = BTreeMap::new();
    for (i, key) in batch.series_keys.iter().enumerate() {
        for (name, value) in key.tags() {
            let tag = tags.entry(name).or_insert_with(|| Tag {
                values: Vec::new(),
                codes: BTreeMap::new(),
                of_series: vec![None; count],
            });
            let next = tag.values.len() as i32;
            let code = *tag.codes.entry(value).or_insert(next);
            if code == next {
                tag.values.push(value);
            }
            if let Some(slot) = tag.of_series.get_mut(i) {
                *slot = Some(code);
            }
        }
    }
    let column = |tag: Tag<'_>| {
        let code = |series: &u32| tag.of_series.get(*series as usize).copied().flatten();
        let keys: PrimitiveArray<Int32Type> = batch.series.iter().map(code).collect();
        let values = StringArray::from_iter_values(tag.values);
        DictionaryArray::try_new(keys, Arc::new(values)).map_err(broken)
    };
    tags.into_iter().map(|(name, tag)| Ok((name, column(tag)?))).collect()
}

fn nulls(present: &Presence) -> Option<NullBuffer> {
    let bits = || BooleanBuffer::new(Buffer::from_vec(present.words().to_vec()), 0, present.len());
    (!present.all()).then(|| NullBuffer::new(bits()))
}

fn values(field: &FieldColumn) -> Result<ArrayRef, ArrowShape> {
    let nulls = nulls(&field.present);
    Ok(match &field.values {
        FieldValues::F64(v) => {
            Arc::new(Float64Array::try_new(ScalarBuffer::from(v.clone()), nulls).map_err(broken)?)
        }
        FieldValues::I64(v) => {
            Arc::new(Int64Array::try_new(ScalarBuffer::from(v.clone()), nulls).map_err(broken)?)
        }
        FieldValues::U64(v) => {
            Arc::new(UInt64Array::try_new(ScalarBuffer::from(v.clone()), nulls).map_err(broken)?)
        }
        FieldValues::Bool(v) => {
            let bits = BooleanBuffer::collect_bool(v.len(), |i| v.get(i).copied() == Some(true));
            Arc::new(BooleanArray::new(bits, nulls))
        }
        FieldValues::Utf8(v) => {
            if i32::try_from(v.bytes.len()).is_err() {
                return Err(ArrowShape::TooLarge {
                    what: "bytes of text in one column",
                    given: v.bytes.len(),
                    most: i32::MAX as usize,
                });
            }
            let offsets: Vec<i32> =
                std::iter::once(0).chain(v.ends.iter().map(|end| *end as i32)).collect();
            let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
            let bytes = Buffer::from_vec(v.bytes.clone());
            Arc::new(StringArray::try_new(offsets, bytes, nulls).map_err(broken)?)
        }
    })
}
