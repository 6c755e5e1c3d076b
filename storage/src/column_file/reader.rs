//! Reads column files: footer and directory once, then any row ranges of any columns.
//!
//! Owns: the way from a section reference to arrow batches; floats stored as decimals and times
//! stored in coarser units come back as floats and nanoseconds here, so that nothing above knows
//! of them. Never: parses a byte before its seal
//! is checked; returns rows outside the asked ranges.

use std::{ops::Range, panic::AssertUnwindSafe, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, TimestampNanosecondArray, new_null_array},
    compute::concat_batches,
    datatypes::{
        DECIMAL64_MAX_PRECISION, DataType, Field, Schema, SchemaRef, TimeUnit,
        TimestampMicrosecondType, TimestampMillisecondType,
    },
    error::ArrowError,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream::BoxStream};
use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::SealError,
    sealed_store::{ReadError, SealedReader},
};
use millrace_protocol::{ids::TenantId, value::FieldType};
use object_store::ObjectStore;
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
    bundle::SectionRef,
    decimal,
    directory::{DirectoryError, SeriesDirectory},
    layout::Layout,
};
use crate::scan::{arrow_type, time_type};

/// Rows of a batch that a read returns at most.
const BATCH_ROWS: usize = 64 * 1024;
/// Bytes at the end of a Parquet section fetched at once: footer and page index of most files.
const FOOTER_HINT: usize = 64 * 1024;

/// Why a column file cannot be read. Every one names the section and the file it stands in.
#[derive(Debug, thiserror::Error)]
pub enum ColumnFileError {
    /// Its seal, or its keys.
    #[error("{section}: {source}")]
    Seal {
        /// Section and file.
        section: String,
        /// Why.
        source: SealError,
    },
    /// The store.
    #[error("{section} cannot be fetched: {source}; if the file is gone, restore it from a backup")]
    Store {
        /// Section and file.
        section: String,
        /// Why.
        source: object_store::Error,
    },
    /// Parquet.
    #[error("{section} cannot be decoded: {source}; restore the file from a backup")]
    Parquet {
        /// Section and file.
        section: String,
        /// Why.
        source: ParquetError,
    },
    /// The decoder gave up in a way that it should not.
    #[error(
        "{section} makes the Parquet decoder panic; restore the file from a backup and report this"
    )]
    Decoder {
        /// Section and file.
        section: String,
    },
    /// Its directory.
    #[error("{section}: {source}")]
    Directory {
        /// Section and file.
        section: String,
        /// Why.
        source: DirectoryError,
    },
    /// Parquet and directory disagree.
    #[error(
        "{section} has {parquet} rows where its directory counts {directory}; restore the file from a backup"
    )]
    Rows {
        /// Section and file.
        section: String,
        /// Rows in the Parquet section.
        parquet: u64,
        /// Rows in the directory.
        directory: u64,
    },
    /// Columns do not fit.
    #[error("{section}: {source}")]
    Columns {
        /// Section and file.
        section: String,
        /// Why.
        source: ArrowError,
    },
}

/// A section that is open for ranged, authenticated reads, with its name for errors.
#[derive(Debug, Clone)]
struct Section {
    reader: Arc<SealedReader>,
    name: Arc<str>,
}

fn failed(name: &str) -> impl FnOnce(ReadError) -> ColumnFileError {
    let section = name.to_owned();
    move |e| match e {
        ReadError::Seal(source) => ColumnFileError::Seal { section, source },
        ReadError::Store { source, .. } => ColumnFileError::Store { section, source },
    }
}

impl Section {
    async fn open(
        store: &Arc<dyn ObjectStore>,
        keys: &Arc<dyn TenantKeySource>,
        tenant: TenantId,
        at: &SectionRef,
    ) -> Result<Self, ColumnFileError> {
        let name: Arc<str> = at.to_string().into();
        let sealed = at.sealed();
        let reader = SealedReader::open(Arc::clone(store), keys.as_ref(), &tenant.0, &sealed);
        let reader = Arc::new(reader.await.map_err(failed(&name))?);
        Ok(Self { reader, name })
    }

    async fn read(&self, plain: Range<u64>) -> Result<Bytes, ColumnFileError> {
        self.reader.read(plain).await.map_err(failed(&self.name))
    }
}

/// Reads and opens a whole section of a tenant.
pub async fn read_section(
    store: &Arc<dyn ObjectStore>,
    keys: &Arc<dyn TenantKeySource>,
    tenant: TenantId,
    at: &SectionRef,
) -> Result<Bytes, ColumnFileError> {
    let sealed = at.sealed();
    let whole = SealedReader::whole(store.as_ref(), keys.as_ref(), &tenant.0, &sealed);
    whole.await.map_err(failed(&at.to_string()))
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
            let len = self.reader.len();
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
        let decoding = async {
            let place = directory.to_string();
            let directory = read_section(&store, &keys, tenant, &directory).await?;
            let directory = SeriesDirectory::decode(&directory)
                .map_err(|source| ColumnFileError::Directory { section: place, source })?;
            let parquet = Section::open(&store, &keys, tenant, &parquet).await?;
            Self::decode(parquet, directory).await
        };
        // Sealed bytes are ours, but a decoder of foreign make has the last word on them.
        match AssertUnwindSafe(decoding).catch_unwind().await {
            Ok(done) => done,
            Err(_) => Err(ColumnFileError::Decoder { section: parquet.to_string() }),
        }
    }

    async fn decode(
        mut parquet: Section,
        directory: SeriesDirectory,
    ) -> Result<Self, ColumnFileError> {
        let section = parquet.name.to_string();
        let fail = |source| ColumnFileError::Parquet { section: section.clone(), source };
        let footer = parquet.get_metadata(None).await.map_err(fail)?;
        let metadata = narrow_decimals(footer).map_err(fail)?;
        let rows = u64::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or(0);
        if rows != directory.rows() {
            let directory = directory.rows();
            return Err(ColumnFileError::Rows { section, parquet: rows, directory });
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
        let section = self.parquet.name.to_string();
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
        Ok(AssertUnwindSafe(stream)
            .catch_unwind()
            .map(move |batch| {
                let section = || section.clone();
                let batch = batch
                    .map_err(|_| ColumnFileError::Decoder { section: section() })?
                    .map_err(|source| ColumnFileError::Parquet { section: section(), source })?;
                arrange(&batch, &order, &schema)
                    .map_err(|source| ColumnFileError::Columns { section: section(), source })
            })
            .boxed())
    }

    /// Like [`Self::read`], as one batch that has exactly the asked rows.
    pub async fn read_whole(
        &self,
        rows: &[Range<u32>],
        fields: &[(u32, FieldType)],
    ) -> Result<RecordBatch, ColumnFileError> {
        let section = || self.parquet.name.to_string();
        let batches: Vec<RecordBatch> = self.read(rows, fields).try_collect().await?;
        let found: u64 = batches.iter().map(|b| b.num_rows() as u64).sum();
        let asked: u64 = rows.iter().map(|r| r.len() as u64).sum();
        let mut batches = batches.into_iter();
        let first = batches.next().filter(|_| found == asked);
        let Some(first) = first else {
            return Err(ColumnFileError::Rows {
                section: section(),
                parquet: found,
                directory: asked,
            });
        };
        let more: Vec<RecordBatch> = batches.collect();
        if more.is_empty() {
            return Ok(first);
        }
        concat_batches(&first.schema(), std::iter::once(&first).chain(&more))
            .map_err(|source| ColumnFileError::Columns { section: section(), source })
    }

    /// How the file says times and floats.
    pub(crate) fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        for (id, place) in &self.columns {
            let scale = match self.metadata.schema().fields().get(*place).map(|f| f.data_type()) {
                Some(DataType::Float64) => None,
                Some(DataType::Decimal64(_, scale)) => u8::try_from(*scale).ok(),
                Some(DataType::Timestamp(unit, _)) => {
                    layout.unit_ns = match unit {
                        TimeUnit::Second | TimeUnit::Millisecond => layout.unit_ns,
                        TimeUnit::Microsecond => 1_000,
                        TimeUnit::Nanosecond => 1,
                    };
                    continue;
                }
                _ => continue,
            };
            layout.scales.insert(*id, scale);
        }
        layout
    }

    /// Stable ids of the columns that the file has, `time` among them.
    pub(crate) fn column_ids(&self) -> impl Iterator<Item = u32> {
        self.columns.iter().map(|c| c.0)
    }

    /// Whether the file has a column, by its stable id.
    pub(crate) fn has_column(&self, id: u32) -> bool {
        self.columns.iter().any(|c| c.0 == id)
    }

    /// Section and file, as errors name them.
    pub(crate) fn place(&self) -> String {
        self.parquet.name.to_string()
    }
}

/// Decimals as the 64-bit numbers that they are stored as, not as 128-bit ones.
fn narrow_decimals(footer: Arc<ParquetMetaData>) -> Result<ArrowReaderMetadata, ParquetError> {
    let metadata = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new())?;
    let decimal = |ty: &DataType| match ty {
        DataType::Decimal128(p, s) if *p <= DECIMAL64_MAX_PRECISION => {
            Some(DataType::Decimal64(*p, *s))
        }
        _ => None,
    };
    let fields = metadata.schema().fields();
    if !fields.iter().any(|f| decimal(f.data_type()).is_some()) {
        return Ok(metadata);
    }
    let narrow = |field: &Arc<Field>| match decimal(field.data_type()) {
        Some(ty) => Arc::new(field.as_ref().clone().with_data_type(ty)),
        None => Arc::clone(field),
    };
    let hint = Arc::new(Schema::new(fields.iter().map(narrow).collect::<Vec<_>>()));
    let footer = Arc::clone(metadata.metadata());
    ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new().with_schema(hint))
}

/// The column as the type that everything above knows it by; any other pair of types is left to
/// be refused.
fn widen(column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    match (column.data_type(), wanted) {
        (DataType::Decimal64(_, _), DataType::Float64) => decimal::to_floats(column),
        (DataType::Timestamp(Millisecond, _), DataType::Timestamp(Nanosecond, _)) => {
            nanoseconds(column.as_primitive::<TimestampMillisecondType>().values(), 1_000_000)
        }
        (DataType::Timestamp(Microsecond, _), DataType::Timestamp(Nanosecond, _)) => {
            nanoseconds(column.as_primitive::<TimestampMicrosecondType>().values(), 1_000)
        }
        _ => Ok(Arc::clone(column)),
    }
}

fn nanoseconds(times: &[i64], unit: i64) -> Result<ArrayRef, ArrowError> {
    let (low, high) = (i64::MIN / unit, i64::MAX / unit);
    if !times.iter().fold(true, |ok, t| ok & (*t >= low) & (*t <= high)) {
        return Err(ArrowError::ParseError("a time lies outside of what 64 bits hold".to_owned()));
    }
    let times: Vec<i64> = times.iter().map(|t| t * unit).collect();
    Ok(Arc::new(TimestampNanosecondArray::from(times).with_timezone("UTC")))
}

fn arrange(
    batch: &RecordBatch,
    order: &[Option<usize>],
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<ArrayRef> = order
        .iter()
        .zip(schema.fields())
        .map(|(at, field)| match at.and_then(|at| batch.columns().get(at)) {
            Some(column) => widen(column, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns)
}
