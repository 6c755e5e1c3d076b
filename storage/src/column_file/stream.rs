//! Writes a column file run by run, so that a merge holds one file's encoded pages and one row
//! group's rows, never its whole output.
//!
//! Owns: the file as a whole: its columns, row groups and footer, where its series stand. The
//! Parquet is plain and readable by any stock reader: `__sid` (u64), `time` (UTC), then the fields
//! by name, each with its stable id as the Parquet field id. Tags are in the series section, once
//! per series.
//! Never: encodes a value (column.rs and below do); takes a run whose values its columns cannot
//! say bit for bit.

use std::sync::Arc;

use arrow::compute::concat_batches;
use parquet::{
    file::{
        properties::{WriterProperties, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnDescPtr, Type},
};

use super::{
    column::{Column, Scratch},
    directory::SeriesDirectory,
    layout::Layout,
    writer::{ColumnFileParts, FileProfile, WriteFileError},
};
use crate::{
    run::{Run, SeriesSpan},
    schema::TableSchema,
};

/// Rows of a row group at most.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Rows and bytes of runs that are collected before they become a row group.
const COLLECTED_ROWS: usize = 1 << 18;
const COLLECTED_BYTES: usize = 32 << 20;
/// What a collected byte becomes, about, to know when a file is full.
const PACKED: usize = 8;

/// See the module head.
pub(crate) struct ColumnFileWriter {
    writer: SerializedFileWriter<Vec<u8>>,
    leaves: Vec<ColumnDescPtr>,
    layout: Layout,
    profile: FileProfile,
    scratch: Scratch,
    collected: Vec<Run>,
    collected_rows: usize,
    collected_bytes: usize,
    collected_max: usize,
    spans: Vec<SeriesSpan>,
    rows: u32,
}

impl ColumnFileWriter {
    /// A file with the columns of `first`, which is its first run and sets the layout, as near to
    /// `wanted` as it can.
    pub(crate) fn begin(
        first: Run,
        schema: &TableSchema,
        profile: FileProfile,
        wanted: &Layout,
    ) -> Result<Self, WriteFileError> {
        let layout = Column::layout(&first, wanted);
        let mut root = Type::group_type_builder("arrow_schema");
        let columns = columns(&first, schema, &layout)?;
        root = root.with_fields(columns.iter().map(|c| Arc::clone(&c.ty)).collect());
        drop(columns);
        let properties =
            WriterProperties::builder().set_writer_version(WriterVersion::PARQUET_2_0).build();
        let writer =
            SerializedFileWriter::new(Vec::new(), Arc::new(root.build()?), Arc::new(properties))?;
        let mut this = Self {
            leaves: writer.schema_descr().columns().to_vec(),
            writer,
            layout,
            profile,
            scratch: Scratch::default(),
            collected: Vec::new(),
            collected_rows: 0,
            collected_bytes: 0,
            collected_max: COLLECTED_BYTES,
            spans: Vec::new(),
            rows: 0,
        };
        this.take(first, schema)?;
        Ok(this)
    }

    /// Collects no more than about so many bytes of rows before it writes them.
    pub(crate) fn collecting(mut self, bytes: usize) -> Self {
        self.collected_max = bytes.min(COLLECTED_BYTES);
        self
    }

    /// Adds a run of the same columns, whose rows come after those before it. Gives it back if
    /// this file's columns cannot say its values: it begins the next file.
    pub(crate) fn push(
        &mut self,
        run: Run,
        schema: &TableSchema,
    ) -> Result<Option<Run>, WriteFileError> {
        if Column::layout(&run, &self.layout) != self.layout {
            return Ok(Some(run));
        }
        self.take(run, schema)?;
        Ok(None)
    }

    fn take(&mut self, run: Run, schema: &TableSchema) -> Result<(), WriteFileError> {
        for span in &run.series {
            append(&mut self.spans, SeriesSpan { start: self.rows, ..*span });
            self.rows += span.rows;
        }
        self.collected_rows += run.rows();
        self.collected_bytes += run.batch.get_array_memory_size();
        self.collected.push(run);
        if self.collected_rows >= COLLECTED_ROWS || self.collected_bytes >= self.collected_max {
            self.write_collected(schema)?;
        }
        Ok(())
    }

    fn write_collected(&mut self, schema: &TableSchema) -> Result<(), WriteFileError> {
        let collected = std::mem::take(&mut self.collected);
        (self.collected_rows, self.collected_bytes) = (0, 0);
        let Some(run) = joined(collected)? else { return Ok(()) };
        let columns = columns(&run, schema, &self.layout)?;
        for from in (0..run.rows()).step_by(ROW_GROUP_ROWS) {
            let rows = from..(from + ROW_GROUP_ROWS).min(run.rows());
            let mut group = self.writer.next_row_group()?;
            for (column, leaf) in columns.iter().zip(&self.leaves) {
                let leaf = Arc::clone(leaf);
                let (bytes, close) =
                    column.chunk(rows.clone(), leaf, self.profile, &mut self.scratch)?;
                group.append_column(&bytes, close)?;
            }
            group.close()?;
        }
        Ok(())
    }

    /// Encoded bytes so far, about.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.collected_bytes / PACKED
    }

    /// The file's sections.
    pub(crate) fn finish(
        mut self,
        schema: &TableSchema,
    ) -> Result<ColumnFileParts, WriteFileError> {
        self.write_collected(schema)?;
        let t_min = self.spans.iter().map(|s| s.t_min).min().ok_or(WriteFileError::Empty)?;
        let t_max = self.spans.iter().map(|s| s.t_max).max().ok_or(WriteFileError::Empty)?;
        let parquet = self.writer.into_inner()?;
        let directory = SeriesDirectory::new(self.spans).encode();
        Ok(ColumnFileParts { parquet, directory, rows: u64::from(self.rows), t_min, t_max })
    }
}

/// A long series comes in several runs: its span grows.
fn append(spans: &mut Vec<SeriesSpan>, span: SeriesSpan) {
    match spans.last_mut() {
        Some(last) if last.sid == span.sid => {
            last.rows += span.rows;
            last.t_max = span.t_max;
        }
        _ => spans.push(span),
    }
}

fn joined(mut runs: Vec<Run>) -> Result<Option<Run>, WriteFileError> {
    if runs.len() < 2 {
        return Ok(runs.pop());
    }
    let (mut series, mut rows) = (Vec::new(), 0u32);
    for span in runs.iter().flat_map(|r| &r.series) {
        append(&mut series, SeriesSpan { start: rows, ..*span });
        rows += span.rows;
    }
    let Some(first) = runs.first() else { return Ok(None) };
    let batch = concat_batches(&first.batch.schema(), runs.iter().map(|r| &r.batch))?;
    Ok(Some(Run { field_ids: first.field_ids.clone(), batch, series }))
}

fn columns<'a>(
    run: &'a Run,
    schema: &TableSchema,
    layout: &Layout,
) -> Result<Vec<Column<'a>>, WriteFileError> {
    let time = run.batch.column(0);
    let mut columns = vec![Column::series(&run.series)?, Column::time(time, layout.unit_ns)?];
    for (id, array) in run.field_ids.iter().zip(run.batch.columns().iter().skip(1)) {
        let def = schema.field_by_id(*id).ok_or(WriteFileError::UnknownColumn(*id))?;
        let scale = layout.scales.get(id).copied().flatten();
        columns.push(Column::field(&def.name, *id, array, scale)?);
    }
    Ok(columns)
}
