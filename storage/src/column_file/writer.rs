//! What a column file is written for and from, and a file of one run.
//!
//! Owns: the parts of a file before they are sealed, and why there are none.
//! Never: decides about layout (stream.rs) or encodings (column.rs).

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use super::{layout::Layout, stream::ColumnFileWriter};
use crate::{run::Run, schema::TableSchema};

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
    ColumnFileWriter::begin(run.clone(), schema, profile, &Layout::default())?.finish(schema)
}
