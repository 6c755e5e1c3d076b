//! Reads column files: footer and directory once, then any row ranges of any columns.
//!
//! Owns: the way from a section reference to arrow batches. Never: parses a byte before its seal
//! is checked; returns rows outside the asked ranges.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, new_null_array},
    datatypes::{Field, Schema, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::{ObjectOpener, SEALED_HEADER_BYTES, SealError},
};
use millrace_protocol::{ids::TenantId, value::FieldType};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection},
        async_reader::AsyncFileReader,
    },
    errors::ParquetError,
    file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
};

use super::{
    bundle::{SectionRef, object_path},
    directory::{DirectoryError, SeriesDirectory},
};
use crate::scan::{arrow_type, time_type};

/// Rows of a batch that a read returns at most.
const BATCH_ROWS: usize = 64 * 1024;
/// Bytes at the end of a Parquet section fetched at once: footer and page index of most files.
const FOOTER_HINT: usize = 64 * 1024;

/// Why a column file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ColumnFileError {
    /// Its seal.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store.
    #[error("column file section {section} cannot be fetched: {source}")]
    Store {
        /// The section's id, as hex.
        section: String,
        /// Why.
        source: object_store::Error,
    },
    /// Parquet.
    #[error("column file section {section} cannot be decoded: {source}")]
    Parquet {
        /// The section's id, as hex.
        section: String,
        /// Why.
        source: ParquetError,
    },
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Parquet and directory disagree.
    #[error(
        "column file section {section} has {parquet} rows but its directory counts {directory}; run `millrace fsck`"
    )]
    Rows {
        /// The section's id, as hex.
        section: String,
        /// Rows in the Parquet section.
        parquet: u64,
        /// Rows in the directory.
        directory: u64,
    },
    /// Columns do not fit.
    #[error("column file: {0}")]
    Columns(#[from] ArrowError),
}

/// A section that is open for ranged, authenticated reads.
#[derive(Debug, Clone)]
struct Section {
    store: Arc<dyn ObjectStore>,
    path: Path,
    offset: u64,
    opener: Arc<ObjectOpener>,
    id: [u8; 16],
}

impl Section {
    async fn open(
        store: &Arc<dyn ObjectStore>,
        keys: &Arc<dyn TenantKeySource>,
        tenant: TenantId,
        at: &SectionRef,
    ) -> Result<Self, ColumnFileError> {
        let path = object_path(&at.object);
        let head = at.offset..at.offset + at.len.min(SEALED_HEADER_BYTES as u64);
        let fail = |source| ColumnFileError::Store { section: hex::encode(at.section_id), source };
        let header = store.get_range(&path, head).await.map_err(fail)?;
        let opener = ObjectOpener::open(keys.as_ref(), &tenant.0, at.section_id, &header)?;
        if opener.sealed_len() != at.len {
            return Err(SealError::Forged {
                object: hex::encode(at.section_id),
                what: format!("its length {}, which should be {}", at.len, opener.sealed_len()),
            }
            .into());
        }
        Ok(Self {
            store: Arc::clone(store),
            path,
            offset: at.offset,
            opener: Arc::new(opener),
            id: at.section_id,
        })
    }

    async fn read(&self, plain: Range<u64>) -> Result<Bytes, ColumnFileError> {
        let sealed = self.opener.ciphertext_range(plain.clone())?;
        let at = sealed.start + self.offset..sealed.end + self.offset;
        let fail = |source| ColumnFileError::Store { section: hex::encode(self.id), source };
        let bytes = self.store.get_range(&self.path, at).await.map_err(fail)?;
        Ok(self.opener.decrypt_range(plain, bytes.into())?)
    }

    async fn whole(&self) -> Result<Bytes, ColumnFileError> {
        self.read(0..self.opener.plaintext_len()).await
    }
}

/// Reads and opens a whole section of a tenant.
pub async fn read_section(
    store: &Arc<dyn ObjectStore>,
    keys: &Arc<dyn TenantKeySource>,
    tenant: TenantId,
    at: &SectionRef,
) -> Result<Bytes, ColumnFileError> {
    Section::open(store, keys, tenant, at).await?.whole().await
}

impl AsyncFileReader for Section {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { self.read(range).await.map_err(|e| ParquetError::External(Box::new(e))) }
            .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let len = self.opener.plaintext_len();
            let metadata = ParquetMetaDataReader::new()
                .with_offset_index_policy(PageIndexPolicy::Optional)
                .with_prefetch_hint(Some(FOOTER_HINT))
                .load_and_finish(self, len)
                .await?;
            Ok(Arc::new(metadata))
        }
        .boxed()
    }
}

/// An open column file.
#[derive(Debug)]
pub struct ColumnFile {
    parquet: Section,
    metadata: ArrowReaderMetadata,
    directory: SeriesDirectory,
    /// (stable column id, place among the Parquet columns).
    columns: Vec<(u32, usize)>,
}

impl ColumnFile {
    /// Opens both sections and decodes footer and directory.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        keys: Arc<dyn TenantKeySource>,
        tenant: TenantId,
        parquet: SectionRef,
        directory: SectionRef,
    ) -> Result<Self, ColumnFileError> {
        let section = hex::encode(parquet.section_id);
        let directory = read_section(&store, &keys, tenant, &directory).await?;
        let directory = SeriesDirectory::decode(&directory)?;
        let mut parquet = Section::open(&store, &keys, tenant, &parquet).await?;
        let fail = |source| ColumnFileError::Parquet { section: section.clone(), source };
        let footer = parquet.get_metadata(None).await.map_err(fail)?;
        let metadata =
            ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new()).map_err(fail)?;
        let rows = u64::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or(0);
        if rows != directory.rows() {
            return Err(ColumnFileError::Rows {
                section,
                parquet: rows,
                directory: directory.rows(),
            });
        }
        let root = metadata.parquet_schema().root_schema();
        let columns = root
            .get_fields()
            .iter()
            .enumerate()
            .filter(|(_, f)| f.get_basic_info().has_id())
            .filter_map(|(at, f)| Some((u32::try_from(f.get_basic_info().id()).ok()?, at)))
            .collect();
        Ok(Self { parquet, metadata, directory, columns })
    }

    /// Which rows belong to which series.
    pub fn directory(&self) -> &SeriesDirectory {
        &self.directory
    }

    /// Rows `rows` (sorted, disjoint) as batches of `time` and then the asked fields in order; a
    /// field that the file does not have is all null.
    pub fn read(
        &self,
        rows: &[Range<u32>],
        fields: &[(u32, FieldType)],
    ) -> BoxStream<'static, Result<RecordBatch, ColumnFileError>> {
        match self.stream(rows, fields) {
            Ok(stream) => stream,
            Err(e) => futures::stream::once(async { Err(e) }).boxed(),
        }
    }

    fn stream(
        &self,
        rows: &[Range<u32>],
        fields: &[(u32, FieldType)],
    ) -> Result<BoxStream<'static, Result<RecordBatch, ColumnFileError>>, ColumnFileError> {
        let section = hex::encode(self.parquet.id);
        let place = |id: u32| self.columns.iter().find(|c| c.0 == id).map(|c| c.1);
        // 2 is the time column's id (writer.rs).
        let wanted: Vec<Option<usize>> =
            std::iter::once(place(2)).chain(fields.iter().map(|f| place(f.0))).collect();
        let mut roots: Vec<usize> = wanted.iter().flatten().copied().collect();
        roots.sort_unstable();
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots.iter().copied());
        // After projection, a column stands where its place sorts among the projected ones.
        let order: Vec<Option<usize>> =
            wanted.iter().map(|w| w.and_then(|w| roots.binary_search(&w).ok())).collect();
        let mut schema = vec![Field::new("time", time_type(), false)];
        schema.extend(
            fields.iter().map(|(id, ty)| Field::new(id.to_string(), arrow_type(*ty), true)),
        );
        let schema: SchemaRef = Arc::new(Schema::new(schema));
        let total = usize::try_from(self.directory.rows()).unwrap_or(usize::MAX);
        let selection = RowSelection::from_consecutive_ranges(
            rows.iter().map(|r| r.start as usize..r.end as usize),
            total,
        );
        let stream = ParquetRecordBatchStreamBuilder::new_with_metadata(
            self.parquet.clone(),
            self.metadata.clone(),
        )
        .with_projection(mask)
        .with_row_selection(selection)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|source| ColumnFileError::Parquet { section: section.clone(), source })?;
        Ok(stream
            .map(move |batch| {
                let batch = batch.map_err(|source| ColumnFileError::Parquet {
                    section: section.clone(),
                    source,
                })?;
                arrange(&batch, &order, &schema)
            })
            .boxed())
    }
}

fn arrange(
    batch: &RecordBatch,
    order: &[Option<usize>],
    schema: &SchemaRef,
) -> Result<RecordBatch, ColumnFileError> {
    let columns: Vec<ArrayRef> = order
        .iter()
        .zip(schema.fields())
        .map(|(at, field)| match at.and_then(|at| batch.columns().get(at)) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
