//! Builds a view's columns from its rows.
//!
//! Owns: the Arrow types that views use: text, counts (`UInt64`), sizes and levels, times.

use std::sync::Arc;

use datafusion::arrow::{
    array::{ArrayRef, Int64Array, StringArray, TimestampNanosecondArray, UInt64Array},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};

/// Text.
pub(super) const TEXT: DataType = DataType::Utf8;
/// A number that is never negative.
pub(super) const COUNT: DataType = DataType::UInt64;
/// A number.
pub(super) const NUMBER: DataType = DataType::Int64;

/// A time, as every table's `time`.
pub(super) fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// Names and types; those in `nullable` may be absent.
pub(super) fn schema(columns: &[(&str, DataType)], nullable: &[&str]) -> SchemaRef {
    let field =
        |(name, ty): &(&str, DataType)| Field::new(*name, ty.clone(), nullable.contains(name));
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

pub(super) fn texts(values: impl Iterator<Item = impl AsRef<str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

pub(super) fn counts(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

pub(super) fn numbers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(super) fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter(values).with_timezone("UTC"))
}
