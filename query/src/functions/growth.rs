//! How large a function's result can be, row by row, before it is computed.
//!
//! Owns: one upper bound for each way to grow. Never: computes a result.

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray},
        compute::cast,
        datatypes::{DataType, Int64Type},
    },
    error::Result,
    logical_expr::ColumnarValue,
};

use super::measure;

/// A row of a function that compiles one pattern per row costs this much, so that few such rows
/// make a slice: 10 MB is what the pattern compiler may use for one.
const PATTERN_ROW: u64 = 1 << 20;

/// Ways to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// At most four times all arguments together (case mapping and codes grow by less).
    Sum,
    /// First argument times the number in the second.
    Repeated,
    /// As many characters as the number in the second argument.
    Padded,
    /// Every second in the first becomes the third.
    Replaced,
    /// Every place between two bytes may become the third argument.
    ReplacedByPattern,
    /// All arguments with the first between them.
    Separated,
    /// All elements as text with the second argument between them.
    Joined,
    /// A time by a format in the second argument, in which two bytes become up to forty.
    Format,
    /// No growth, but a pattern that may have to be compiled for each row.
    Pattern,
    /// No growth, but work of length times length.
    Table,
}

/// One argument, readable at any row.
#[derive(Debug)]
pub(super) struct Argument {
    values: ArrayRef,
    /// One value for all rows.
    constant: bool,
}

impl Argument {
    pub(super) fn new(value: &ColumnarValue) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Array(values) => {
                Self { values: ArrayRef::clone(values), constant: false }
            }
            ColumnarValue::Scalar(value) => Self { values: value.to_array()?, constant: true },
        })
    }

    fn row(&self, row: usize) -> usize {
        if self.constant { 0 } else { row }
    }

    fn bytes(&self, row: usize) -> u64 {
        measure::bytes(self.values.as_ref(), self.row(row), 1)
    }

    fn leaves(&self, row: usize) -> u64 {
        measure::leaves(self.values.as_ref(), self.row(row), 1)
    }

    /// The whole numbers of an argument; what is no number counts as the largest.
    fn numbers(self) -> Result<Self> {
        let values = match self.values.data_type() {
            DataType::Int64 => self.values,
            _ => cast(&self.values, &DataType::Int64)?,
        };
        Ok(Self { values, constant: self.constant })
    }

    fn number(&self, row: usize) -> u64 {
        let (row, values) = (self.row(row), self.values.as_primitive::<Int64Type>());
        if values.is_null(row) { 0 } else { values.value(row).max(0) as u64 }
    }
}

/// An upper bound of a result's bytes for each of `rows` rows.
pub(super) fn bounds(growth: Growth, args: &[ColumnarValue], rows: usize) -> Result<Vec<u64>> {
    let mut args: Vec<Argument> = args.iter().map(Argument::new).collect::<Result<_>>()?;
    if matches!(growth, Growth::Repeated | Growth::Padded) && args.len() > 1 {
        let count = args.remove(1).numbers()?;
        args.insert(1, count);
    }
    Ok((0..rows).map(|row| bound(growth, &args, row)).collect())
}

fn bound(growth: Growth, args: &[Argument], row: usize) -> u64 {
    let sum: u64 = args.iter().map(|a| a.bytes(row)).fold(0, u64::saturating_add);
    // A text's own bytes, without its place in the array.
    let text = |at: usize| args.get(at).map_or(0, |a| a.bytes(row) - measure::SLOT);
    let number = || args.get(1).map_or(0, |a| a.number(row));
    let made = match growth {
        Growth::Sum => sum.saturating_mul(3),
        Growth::Repeated => text(0).saturating_mul(number()),
        Growth::Padded => number().saturating_mul(4),
        // DataFusion returns the text unchanged if the searched one is empty.
        Growth::Replaced => (text(0) / text(1).max(1) + 1).saturating_mul(text(2)),
        Growth::ReplacedByPattern => (text(0) + 1).saturating_mul(text(2)),
        Growth::Separated => text(0).saturating_mul(args.len() as u64),
        Growth::Joined => {
            let elements = args.first().map_or(0, |a| a.leaves(row));
            elements.saturating_mul(text(1) + text(2) + 32)
        }
        Growth::Format => sum.saturating_mul(20),
        Growth::Pattern if args.get(1).is_some_and(|a| !a.constant) => PATTERN_ROW,
        Growth::Pattern => 0,
        Growth::Table => text(0).saturating_mul(text(1)),
    };
    sum.saturating_add(made)
}
