//! A sorted run: rows of one table in the order of column files.
//!
//! Invariants: rows by (series in tag order, time); each series contiguous; no two rows of equal
//! series and time; spans cover the rows without holes.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, TimestampNanosecondArray},
    datatypes::{Field, Schema},
    error::ArrowError,
};
use millrace_protocol::ids::SeriesId;

use crate::scan::time_type;

/// The rows of one series in a run or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesSpan {
    /// Which series.
    pub sid: SeriesId,
    /// First row.
    pub start: u32,
    /// Rows, at least 1.
    pub rows: u32,
    /// Smallest time, ns.
    pub t_min: i64,
    /// Largest time, ns.
    pub t_max: i64,
}

/// See the module head.
#[derive(Debug, Clone)]
pub struct Run {
    /// Stable column ids of the batch's columns after the first.
    pub field_ids: Vec<u32>,
    /// `time` (Timestamp ns UTC, not null), then one nullable column per field id.
    pub batch: RecordBatch,
    /// The series, in row order.
    pub series: Vec<SeriesSpan>,
}

/// Columns that do not make a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Lengths or types do not fit.
    #[error("columns do not fit together: {0}")]
    Columns(#[from] ArrowError),
}

impl Run {
    /// Puts columns together; fields are named by their ids.
    pub(crate) fn new(
        time: Vec<i64>,
        field_ids: Vec<u32>,
        fields: Vec<ArrayRef>,
        series: Vec<SeriesSpan>,
    ) -> Result<Self, RunError> {
        let mut schema = vec![Field::new("time", time_type(), false)];
        for (id, column) in field_ids.iter().zip(&fields) {
            schema.push(Field::new(id.to_string(), column.data_type().clone(), true));
        }
        let time = TimestampNanosecondArray::from(time).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![Arc::new(time)];
        columns.extend(fields);
        let batch = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns)?;
        Ok(Self { field_ids, batch, series })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Smallest and largest time; `None` without rows.
    pub fn time_bounds(&self) -> Option<(i64, i64)> {
        self.series.iter().map(|s| (s.t_min, s.t_max)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}
