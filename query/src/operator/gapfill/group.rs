//! One group: the rows that are there, and what comes between them.
//!
//! Owns: the order of rows and buckets. Both are read once, side by side; a row is never dropped,
//! even if its time is no bucket's (it has none, or a bound was read more narrowly than it is).
//! Never: holds more than the group's own rows and one stretch of made ones.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{
            Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, TimestampNanosecondArray,
        },
        datatypes::{DataType, SchemaRef, TimestampNanosecondType},
    },
    common::plan_err,
    error::Result,
};

use super::{
    buckets::Buckets,
    columns::{self, Known, Stretch},
    node::Fill,
};
use crate::functions::value_bytes;

/// What every group of a query shares.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) fills: Arc<[Fill]>,
    pub(super) buckets: Buckets,
    /// Of what comes out.
    pub(super) schema: SchemaRef,
}

impl Shape {
    /// The column of the buckets.
    pub(super) fn time(&self) -> usize {
        self.fills.iter().position(|f| *f == Fill::Time).unwrap_or(0)
    }
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Group {
    rows: RecordBatch,
    /// Times of the rows, those without one left out.
    times_ns: Vec<i64>,
    /// Rows without a time; they come first.
    timeless: usize,
    next_row: usize,
    next_bucket: u64,
    /// For each column, the last row before the next stretch with a value.
    last: Vec<Option<usize>>,
}

impl Group {
    pub(super) fn new(rows: RecordBatch, shape: &Shape) -> Result<Self> {
        let Some(times) = rows.column(shape.time()).as_primitive_opt::<TimestampNanosecondType>()
        else {
            return plan_err!("`date_bin_gapfill` takes a time");
        };
        let timeless = times.null_count();
        // Nulls are sorted first.
        let times_ns = times.values().iter().skip(timeless).copied().collect();
        let last = vec![None; rows.num_columns()];
        Ok(Self { rows, times_ns, timeless, next_row: 0, next_bucket: 0, last })
    }

    /// Bytes of the values that can be repeated in a row.
    pub(super) fn repeated_bytes(&self, fills: &[Fill]) -> u64 {
        let columns = self.rows.columns().iter().zip(fills);
        let widest = columns.map(|(column, fill)| match fill {
            _ if column.data_type().is_primitive() || column.data_type() == &DataType::Boolean => 8,
            // A dictionary's value is repeated by its key alone.
            _ if matches!(column.data_type(), DataType::Dictionary(..)) => 8,
            Fill::Key if !column.is_empty() => value_bytes(column, 0, 1),
            Fill::Previous => {
                (0..column.len()).map(|row| value_bytes(column, row, 1)).max().unwrap_or(0)
            }
            _ => 0,
        });
        widest.sum()
    }

    /// The next rows, at most `rows_max`, and how many of them were made; None at the end.
    pub(super) fn next(
        &mut self,
        shape: &Shape,
        rows_max: usize,
    ) -> Result<Option<(RecordBatch, u64)>> {
        if self.timeless > 0 {
            let timeless = std::mem::take(&mut self.timeless);
            let head = self.rows.slice(0, timeless);
            // What follows counts rows from the first one with a time; the group's own values are
            // in that one as well, unless there is none, and then there is nothing to fill.
            self.rows = self.rows.slice(timeless, self.rows.num_rows() - timeless);
            if self.rows.num_rows() == 0 {
                self.next_bucket = shape.buckets.count();
            }
            let head = RecordBatch::try_new(Arc::clone(&shape.schema), head.columns().to_vec())?;
            return Ok(Some((head, 0)));
        }
        let (stretch, made) = self.stretch(&shape.buckets, rows_max)?;
        if stretch.rows.is_empty() {
            return Ok(None);
        }
        let columns = (0..self.rows.num_columns())
            .zip(shape.fills.iter())
            .map(|(at, fill)| self.column(at, *fill, &stretch))
            .collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(stretch.rows.len()));
        let schema = Arc::clone(&shape.schema);
        Ok(Some((RecordBatch::try_new_with_options(schema, columns, &options)?, made)))
    }

    /// Rows and buckets in the order of their times.
    fn stretch(&mut self, buckets: &Buckets, rows_max: usize) -> Result<(Stretch, u64)> {
        let (mut stretch, mut made) = (Stretch::default(), 0);
        while stretch.rows.len() < rows_max {
            let row = self.times_ns.get(self.next_row).copied();
            let bucket = if self.next_bucket < buckets.count() {
                Some(buckets.start_ns(self.next_bucket)?)
            } else {
                None
            };
            let (time, is_row) = match (row, bucket) {
                (None, None) => break,
                (Some(row), None) => (row, true),
                (None, Some(bucket)) => (bucket, false),
                (Some(row), Some(bucket)) => (row.min(bucket), row <= bucket),
            };
            stretch.times_ns.push(time);
            stretch.rows.push(is_row.then_some(self.next_row));
            self.next_row += usize::from(is_row);
            made += u64::from(!is_row);
            self.next_bucket += u64::from(bucket == Some(time));
        }
        Ok((stretch, made))
    }

    fn column(&mut self, at: usize, fill: Fill, stretch: &Stretch) -> Result<ArrayRef> {
        let values = self.rows.column(at);
        let Some(last) = self.last.get_mut(at) else { return plan_err!("no column {at}") };
        match fill {
            Fill::Key => columns::repeated(values, stretch.rows.len()),
            Fill::Null => columns::present(values, stretch),
            Fill::Previous => columns::previous(values, stretch, last),
            Fill::Linear => {
                let known = Known { times_ns: &self.times_ns, values };
                columns::linear(&known, stretch, last)
            }
            Fill::Time => {
                let times = TimestampNanosecondArray::from(stretch.times_ns.clone());
                match values.data_type() {
                    DataType::Timestamp(_, Some(zone)) => {
                        Ok(Arc::new(times.with_timezone(Arc::clone(zone))))
                    }
                    _ => Ok(Arc::new(times)),
                }
            }
        }
    }
}
