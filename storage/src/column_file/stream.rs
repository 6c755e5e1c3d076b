//! Writes a column file run by run, so that a merge holds one file's encoded pages and one group
//! of rows, never its whole output.
//!
//! Owns: where the file's series stand. Encodings and layout are writer.rs's, chosen on the first
//! run.

use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;

use super::{
    directory::SeriesDirectory,
    writer::{ColumnFileParts, FileProfile, WriteFileError, properties, with_sid},
};
use crate::{
    run::{Run, SeriesSpan},
    schema::TableSchema,
};

/// See the module head.
pub(crate) struct ColumnFileWriter {
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
    spans: Vec<SeriesSpan>,
    rows: u32,
}

impl ColumnFileWriter {
    /// A file with the columns of `first`, which is its first run.
    pub(crate) fn begin(
        first: &Run,
        schema: &TableSchema,
        profile: FileProfile,
    ) -> Result<Self, WriteFileError> {
        let batch = with_sid(first, schema)?;
        let properties = properties(&batch, profile);
        let writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
        let mut this = Self { writer, schema: batch.schema(), spans: Vec::new(), rows: 0 };
        this.append(first, &batch)?;
        Ok(this)
    }

    /// Adds a run of the same columns, whose rows come after those before it.
    pub(crate) fn push(&mut self, run: &Run, schema: &TableSchema) -> Result<(), WriteFileError> {
        let batch = with_sid(run, schema)?;
        self.append(run, &batch)
    }

    fn append(
        &mut self,
        run: &Run,
        batch: &arrow::array::RecordBatch,
    ) -> Result<(), WriteFileError> {
        debug_assert_eq!(batch.schema(), self.schema, "runs of one file have one schema");
        self.writer.write(batch)?;
        for span in &run.series {
            match self.spans.last_mut() {
                // A long series comes in several runs.
                Some(last) if last.sid == span.sid => {
                    last.rows += span.rows;
                    last.t_max = span.t_max;
                }
                _ => self.spans.push(SeriesSpan { start: self.rows, ..*span }),
            }
            self.rows += span.rows;
        }
        Ok(())
    }

    /// Encoded bytes so far, about.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// The file's sections.
    pub(crate) fn finish(self) -> Result<ColumnFileParts, WriteFileError> {
        let t_min = self.spans.iter().map(|s| s.t_min).min().ok_or(WriteFileError::Empty)?;
        let t_max = self.spans.iter().map(|s| s.t_max).max().ok_or(WriteFileError::Empty)?;
        let parquet = self.writer.into_inner()?;
        let directory = SeriesDirectory::new(self.spans).encode();
        Ok(ColumnFileParts { parquet, directory, rows: u64::from(self.rows), t_min, t_max })
    }
}
