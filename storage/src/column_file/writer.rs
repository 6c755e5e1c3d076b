//! Encodes a run as a Parquet section and its directory.
//!
//! Owns: encodings and page layout. The Parquet is plain and readable by any stock reader:
//! `__sid` (u64), `time` (ns, UTC), then the fields by name, each with its stable id as the
//! Parquet field id. Tags are in the series section, once per series.
//! Choices (measured, see the design's "Flush and compaction"): time and integers
//! DELTA_BINARY_PACKED, `__sid` a dictionary, floats a dictionary where few values are distinct
//! (decided on a sample) and PLAIN otherwise, LZ4_RAW, pages of 8192 rows, page index on, Bloom
//! filters off.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt64Array},
    datatypes::{DataType, Field, Float64Type, Schema},
    error::ArrowError,
};
use parquet::{
    arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY},
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
    schema::types::ColumnPath,
};

use super::directory::SeriesDirectory;
use crate::{run::Run, scan::time_type, schema::TableSchema};

/// Rows of a page: one DataFusion batch.
const PAGE_ROWS: usize = 8192;
/// Rows of a row group at most.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Rows looked at to choose a float column's encoding.
const SAMPLE_ROWS: usize = 4096;

/// What a file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileProfile {
    /// Fast to write and read: LZ4.
    Hot,
}

/// The two sections of a file, not yet sealed.
#[derive(Debug, Clone)]
pub struct ColumnFileParts {
    /// The Parquet section.
    pub parquet: Vec<u8>,
    /// The series directory section.
    pub directory: Vec<u8>,
    /// Rows.
    pub rows: u64,
    /// Smallest time, ns.
    pub t_min: i64,
    /// Largest time, ns.
    pub t_max: i64,
}

/// Why a run could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum WriteFileError {
    /// Parquet refused.
    #[error("a column file could not be encoded: {0}")]
    Parquet(#[from] ParquetError),
    /// Columns do not fit.
    #[error("a column file could not be built: {0}")]
    Columns(#[from] ArrowError),
    /// A run without rows makes no file.
    #[error("a column file needs at least one row")]
    Empty,
    /// A column id that the schema does not have.
    #[error("column {0} is not in the table's schema")]
    UnknownColumn(u32),
}

/// Encodes `run`, a run of table `schema`.
pub fn write_column_file(
    run: &Run,
    schema: &TableSchema,
    profile: FileProfile,
) -> Result<ColumnFileParts, WriteFileError> {
    let (t_min, t_max) = run.time_bounds().ok_or(WriteFileError::Empty)?;
    let batch = with_sid(run, schema)?;
    let properties = properties(&batch, profile);
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    let parquet = writer.into_inner()?;
    Ok(ColumnFileParts {
        parquet,
        directory: SeriesDirectory::new(run.series.clone()).encode(),
        rows: run.rows() as u64,
        t_min,
        t_max,
    })
}

pub(super) fn with_sid(run: &Run, schema: &TableSchema) -> Result<RecordBatch, WriteFileError> {
    let mut sids = Vec::with_capacity(run.rows());
    for span in &run.series {
        sids.extend(std::iter::repeat_n(span.sid.0, span.rows as usize));
    }
    let field = |name: &str, ty: DataType, null: bool, id: u32| {
        Field::new(name, ty, null).with_metadata(
            [(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())].into_iter().collect(),
        )
    };
    let mut fields =
        vec![field("__sid", DataType::UInt64, false, 1), field("time", time_type(), false, 2)];
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(UInt64Array::from(sids)), Arc::clone(run.batch.column(0))];
    for (id, column) in run.field_ids.iter().zip(run.batch.columns().iter().skip(1)) {
        let def = schema.field_by_id(*id).ok_or(WriteFileError::UnknownColumn(*id))?;
        fields.push(field(&def.name, column.data_type().clone(), true, *id));
        columns.push(Arc::clone(column));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

pub(super) fn properties(batch: &RecordBatch, profile: FileProfile) -> WriterProperties {
    let compression = match profile {
        FileProfile::Hot => Compression::LZ4_RAW,
    };
    let mut out = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(compression)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_bloom_filter_enabled(false)
        .set_dictionary_enabled(false);
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let path = ColumnPath::from(field.name().as_str());
        out = match field.data_type() {
            _ if field.name() == "__sid" => out.set_column_dictionary_enabled(path, true),
            DataType::Int64 | DataType::UInt64 | DataType::Timestamp(_, _) => {
                out.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
            }
            DataType::Float64 if few_distinct(column) => {
                out.set_column_dictionary_enabled(path, true)
            }
            DataType::Utf8 => out.set_column_dictionary_enabled(path, true),
            _ => out,
        };
    }
    out.build()
}

/// Whether a sample of the column repeats its values enough for a dictionary to pay.
fn few_distinct(column: &ArrayRef) -> bool {
    let values = column.as_primitive::<Float64Type>();
    let step = (values.len() / SAMPLE_ROWS).max(1);
    let mut sample: Vec<u64> = (0..values.len())
        .step_by(step)
        .filter(|row| values.is_valid(*row))
        .map(|row| values.value(row).to_bits())
        .collect();
    let taken = sample.len();
    sample.sort_unstable();
    sample.dedup();
    sample.len() * 2 <= taken
}
