//! Encodes a run as a Parquet section and its directory.
//!
//! Owns: the file as a whole: its columns, row groups and footer. The Parquet is plain and
//! readable by any stock reader: `__sid` (u64), `time` (UTC), then the fields by name, each with
//! its stable id as the Parquet field id. Tags are in the series section, once per series.
//! Never: encodes a value (column.rs and below do); lets a sample decide what only all values can.

use std::sync::Arc;

use arrow::error::ArrowError;
use parquet::{
    errors::ParquetError,
    file::{
        properties::{WriterProperties, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::types::Type,
};

use super::{
    column::{Column, Scratch},
    directory::SeriesDirectory,
};
use crate::{run::Run, schema::TableSchema};

/// Rows of a row group at most.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// What a file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileProfile {
    /// Soon merged: LZ4 where values repeat.
    Hot,
    /// Kept: zstd where values repeat, and floats of full precision byte by byte.
    Merged,
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
    /// A type that no field has.
    #[error("column {column} has a type that column files do not store")]
    UnknownType {
        /// Its stable id.
        column: u32,
    },
}

/// Encodes `run`, a run of table `schema`.
pub fn write_column_file(
    run: &Run,
    schema: &TableSchema,
    profile: FileProfile,
) -> Result<ColumnFileParts, WriteFileError> {
    let (t_min, t_max) = run.time_bounds().ok_or(WriteFileError::Empty)?;
    let columns = columns(run, schema)?;
    let mut root = Type::group_type_builder("arrow_schema");
    root = root.with_fields(columns.iter().map(|c| Arc::clone(&c.ty)).collect());
    let properties =
        WriterProperties::builder().set_writer_version(WriterVersion::PARQUET_2_0).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(root.build()?), Arc::new(properties))?;
    let leaves = writer.schema_descr().columns().to_vec();
    let mut scratch = Scratch::default();
    for from in (0..run.rows()).step_by(ROW_GROUP_ROWS) {
        let rows = from..(from + ROW_GROUP_ROWS).min(run.rows());
        let mut group = writer.next_row_group()?;
        for (column, leaf) in columns.iter().zip(&leaves) {
            let (bytes, close) =
                column.chunk(rows.clone(), Arc::clone(leaf), profile, &mut scratch)?;
            group.append_column(&bytes, close)?;
        }
        group.close()?;
    }
    Ok(ColumnFileParts {
        parquet: writer.into_inner()?,
        directory: SeriesDirectory::new(run.series.clone()).encode(),
        rows: run.rows() as u64,
        t_min,
        t_max,
    })
}

fn columns<'a>(run: &'a Run, schema: &TableSchema) -> Result<Vec<Column<'a>>, WriteFileError> {
    let mut columns = vec![Column::series(&run.series)?, Column::time(run.batch.column(0))?];
    for (id, array) in run.field_ids.iter().zip(run.batch.columns().iter().skip(1)) {
        let def = schema.field_by_id(*id).ok_or(WriteFileError::UnknownColumn(*id))?;
        columns.push(Column::field(&def.name, *id, array)?);
    }
    Ok(columns)
}
