//! What these functions take: the types of their arguments and which rows count.
//!
//! Owns: the refusals, which name the function and what it wants.

use datafusion::{
    arrow::{
        array::{Array, BooleanArray, PrimitiveArray},
        datatypes::{DataType, Int64Type, TimeUnit, TimestampNanosecondType},
    },
    common::{cast::as_primitive_array, plan_err},
    error::Result,
    logical_expr::function::AccumulatorArgs,
};

/// The type that a time is read as: nanoseconds, in the zone that it has.
pub(crate) fn time(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        DataType::Timestamp(_, zone) => Ok(DataType::Timestamp(TimeUnit::Nanosecond, zone.clone())),
        DataType::Null | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => {
            Ok(DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())))
        }
        other => plan_err!("`{function}` takes a time, not {other}"),
    }
}

/// The type that a number is read as. Whole numbers stay whole, so that counters above 2^53 keep
/// small differences.
pub(crate) fn number(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        other if other.is_signed_integer() => Ok(DataType::Int64),
        other if other.is_unsigned_integer() => Ok(DataType::UInt64),
        other if other.is_floating() || other.is_null() => Ok(DataType::Float64),
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => Ok(DataType::Float64),
        other => plan_err!("`{function}` takes a number, not {other}"),
    }
}

/// The refusal of a call with the wrong number of arguments.
pub(crate) fn count<T>(function: &str, wanted: &str) -> Result<T> {
    plan_err!("`{function}` is called as {function}({wanted})")
}

/// Refuses what would change the meaning without a word.
pub(super) fn plain(function: &str, args: &AccumulatorArgs<'_>) -> Result<()> {
    if args.is_distinct {
        return plan_err!("`{function}` counts every row; leave out DISTINCT");
    }
    Ok(())
}

/// Nanoseconds of a column of times.
pub(super) fn nanoseconds(times: &dyn Array) -> Result<&PrimitiveArray<TimestampNanosecondType>> {
    as_primitive_array(times)
}

/// Nanoseconds of a column of a partial state.
pub(super) fn state_nanoseconds(times: &dyn Array) -> Result<&PrimitiveArray<Int64Type>> {
    as_primitive_array(times)
}

/// Whether FILTER lets a row pass.
pub(super) fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|f| f.is_valid(row) && f.value(row))
}
