//! One encoder per format, writing into a shared buffer.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use datafusion::{
    arrow::{
        array::RecordBatch,
        csv,
        datatypes::SchemaRef,
        error::ArrowError,
        ipc::writer::StreamWriter,
        json::{ArrayWriter, LineDelimitedWriter},
        util::pretty::pretty_format_batches,
    },
    parquet::{
        arrow::ArrowWriter,
        basic::{Compression, ZstdLevel},
        errors::ParquetError,
        file::properties::WriterProperties,
    },
};

use super::Format;
use crate::error::QueryError;

/// Rows of a pretty table at most.
const PRETTY_ROWS_MAX: usize = 10_000;
/// Rows of a Parquet row group: bounds what is buffered.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// A buffer that a writer fills and the stream empties.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Kind {
    Json(ArrayWriter<Shared>, bool),
    JsonLines(LineDelimitedWriter<Shared>),
    Csv(Box<csv::Writer<Shared>>, bool),
    Arrow(Box<StreamWriter<Shared>>),
    Parquet(Box<ArrowWriter<Shared>>),
    Pretty(Vec<RecordBatch>, usize),
}

pub(super) struct Encoder {
    kind: Kind,
    out: Shared,
    schema: SchemaRef,
}

fn arrow(e: ArrowError) -> QueryError {
    QueryError::Invalid(format!("the result cannot be written in this format: {e}"))
}

fn parquet(e: ParquetError) -> QueryError {
    QueryError::Invalid(format!("the result cannot be written as Parquet: {e}"))
}

impl Encoder {
    pub(super) fn new(format: Format, schema: &SchemaRef) -> Result<Self, QueryError> {
        let out = Shared::default();
        let kind = match format {
            Format::Json => Kind::Json(ArrayWriter::new(out.clone()), false),
            Format::JsonLines => Kind::JsonLines(LineDelimitedWriter::new(out.clone())),
            Format::Csv => {
                let writer = csv::WriterBuilder::new().with_header(true).build(out.clone());
                Kind::Csv(Box::new(writer), false)
            }
            Format::Arrow => {
                let writer = StreamWriter::try_new(out.clone(), schema).map_err(arrow)?;
                Kind::Arrow(Box::new(writer))
            }
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                let writer =
                    ArrowWriter::try_new(out.clone(), Arc::clone(schema), Some(properties));
                Kind::Parquet(Box::new(writer.map_err(parquet)?))
            }
            Format::Pretty => Kind::Pretty(Vec::new(), 0),
        };
        Ok(Self { kind, out, schema: Arc::clone(schema) })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Json(writer, any) => {
                *any = true;
                writer.write(batch).map_err(arrow)
            }
            Kind::JsonLines(writer) => writer.write(batch).map_err(arrow),
            Kind::Csv(writer, any) => {
                *any = true;
                writer.write(batch).map_err(arrow)
            }
            Kind::Arrow(writer) => writer.write(batch).map_err(arrow),
            Kind::Parquet(writer) => writer.write(batch).map_err(parquet),
            Kind::Pretty(batches, rows) => {
                if *rows < PRETTY_ROWS_MAX {
                    let take = batch.num_rows().min(PRETTY_ROWS_MAX - *rows);
                    batches.push(batch.slice(0, take));
                }
                *rows += batch.num_rows();
                Ok(())
            }
        }
    }

    pub(super) fn take(&self) -> Bytes {
        self.out.take()
    }

    pub(super) fn finish(self) -> Result<Bytes, QueryError> {
        let mut out = self.out.clone();
        match self.kind {
            Kind::Json(mut writer, any) => {
                writer.finish().map_err(arrow)?;
                if !any && out.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    out.write_all(b"[]").map_err(|e| arrow(e.into()))?;
                }
            }
            Kind::JsonLines(mut writer) => writer.finish().map_err(arrow)?,
            Kind::Csv(mut writer, any) => {
                if !any {
                    // The header tells what the columns would have been.
                    writer.write(&RecordBatch::new_empty(self.schema)).map_err(arrow)?;
                }
            }
            Kind::Arrow(mut writer) => writer.finish().map_err(arrow)?,
            Kind::Parquet(writer) => {
                writer.close().map_err(parquet)?;
            }
            Kind::Pretty(mut batches, rows) => {
                if batches.is_empty() {
                    batches.push(RecordBatch::new_empty(self.schema));
                }
                let table = pretty_format_batches(&batches).map_err(arrow)?;
                let mut text = format!("{table}\n");
                if rows > PRETTY_ROWS_MAX {
                    text.push_str(&format!("... {} more rows\n", rows - PRETTY_ROWS_MAX));
                }
                out.write_all(text.as_bytes()).map_err(|e| arrow(e.into()))?;
            }
        }
        Ok(self.out.take())
    }
}

#[cfg(test)]
mod tests;
