//! Reading a table: memtable and files merged into one ordered stream.
//!
//! Owns: pruning by time and series to row ranges, and the streaming merge in groups of series,
//! so that memory is bounded by a group and not by the table.
//! Never: blocks the writer; returns rows outside the asked time range or series set (both are
//! exact, so callers need no filter for them).
//! Order: by (tag tuple in table order, time) inside each partition; partitions are consecutive.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use millrace_protocol::{ids::SeriesId, value::FieldType};

use crate::{
    column_file::reader::{ColumnFile, ColumnFileError},
    erase::{Tombstone, concerning, erase},
    memtable::sort::{RowFilter, sort_chunks},
    merge::{self, Source, Stretch},
    run::{Run, RunError, SeriesSpan},
    series::dictionary::SeriesView,
    snapshot::TableSnapshot,
};

/// One column of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnRef {
    /// A tag, by its place in the schema's `tags`.
    Tag(usize),
    /// The row time.
    Time,
    /// A field, by its place in the schema's `fields`.
    Field(usize),
}

/// What to read.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// Columns of the output, in order.
    pub columns: Vec<ColumnRef>,
    /// Half-open time range, ns.
    pub time: Range<i64>,
    /// By ordinal of the snapshot's `series.entries`; `None` takes all.
    pub series: Option<Arc<Vec<bool>>>,
    /// Streams to split into, at least 1; fewer come back where there is little to read.
    pub partitions: usize,
    /// Rows that a group of series is sized for.
    pub group_rows: usize,
    /// Stop after about this many rows per partition, if given.
    pub limit: Option<usize>,
}

impl ScanRequest {
    /// All rows of all series, as one stream.
    pub fn all(columns: Vec<ColumnRef>) -> Self {
        Self {
            columns,
            time: i64::MIN..i64::MAX,
            series: None,
            partitions: 1,
            group_rows: GROUP_ROWS,
            limit: None,
        }
    }
}

/// Default of [`ScanRequest::group_rows`]: large enough to amortise a read, small enough that a
/// group of 20 columns stays near 10 MiB.
pub const GROUP_ROWS: usize = 64 * 1024;

/// What pruning left, for EXPLAIN and for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Files of the table.
    pub files: usize,
    /// Files whose time bounds overlap.
    pub files_in_range: usize,
    /// Files with at least one wanted series.
    pub files_read: usize,
    /// Series of the table.
    pub series: usize,
    /// Series with at least one stretch to read.
    pub series_read: usize,
    /// Rows of those stretches, memtable included, before merging.
    pub rows: u64,
}

/// A planned scan.
pub struct Scan {
    /// Columns of every batch.
    pub schema: SchemaRef,
    /// What pruning left.
    pub stats: ScanStats,
    plan: Arc<Plan>,
    /// For each partition its groups of series, as inclusive rank ranges.
    partitions: Vec<Vec<(u32, u32)>>,
}

impl Scan {
    /// Streams that the rows are split into, at least 1.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// The rows of one partition; may be asked again.
    pub fn stream(&self, partition: usize) -> BoxStream<'static, Result<RecordBatch, ReadError>> {
        let groups = self.partitions.get(partition).cloned().unwrap_or_default();
        stream(Arc::clone(&self.plan), groups)
    }

    /// All partitions, in order.
    pub fn streams(&self) -> Vec<BoxStream<'static, Result<RecordBatch, ReadError>>> {
        (0..self.partitions()).map(|p| self.stream(p)).collect()
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The tenant has no keys any more.
    #[error("this tenant's keys are gone; its data cannot be read")]
    TenantGone,
    /// A file could not be opened or read.
    #[error(transparent)]
    File(#[from] ColumnFileError),
    /// The memtable could not be sorted.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Columns do not fit together.
    #[error("merging rows failed: {0}")]
    Merge(#[from] ArrowError),
    /// A file names a series that the dictionary does not have.
    #[error(
        "{place} names series {sid}, which the series dictionary does not have; restore the file from a backup"
    )]
    UnknownSeries {
        /// Section and file, or the memtable.
        place: String,
        /// The series.
        sid: SeriesId,
    },
    /// A file's series are not in the order in which all files have them.
    #[error("{place} has its series out of order at {sid}; restore the file from a backup")]
    OutOfOrder {
        /// Section and file, or the memtable.
        place: String,
        /// The first series that is not behind the one before it.
        sid: SeriesId,
    },
}

/// The arrow type of a field.
pub fn arrow_type(ty: FieldType) -> DataType {
    match ty {
        FieldType::F64 => DataType::Float64,
        FieldType::I64 => DataType::Int64,
        FieldType::U64 => DataType::UInt64,
        FieldType::Bool => DataType::Boolean,
        FieldType::Utf8 => DataType::Utf8,
    }
}

/// The arrow type of `time`.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// The arrow type of a tag column.
pub fn tag_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// A stretch of one series in a file or in the memtable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// The series' place in sort order.
    pub rank: u32,
    /// Its first row.
    pub start: u32,
    /// Its rows, at least 1.
    pub rows: u32,
}

/// One thing to read: a file, or the sorted memtable rows.
#[derive(Debug, Clone)]
enum Input {
    File(Arc<ColumnFile>, Vec<Arc<Tombstone>>),
    Memory(RecordBatch),
}

#[derive(Debug)]
struct Plan {
    /// Oldest first; spans in rank order.
    inputs: Vec<(Input, Vec<Span>)>,
    fields: Vec<(u32, FieldType)>,
    columns: Vec<ColumnRef>,
    /// Where field `i` of the schema stands in `fields`.
    schema: SchemaRef,
    time: Range<i64>,
    table: Arc<TableSnapshot>,
    limit: Option<usize>,
}

impl TableSnapshot {
    /// The arrow schema of the asked columns.
    pub fn arrow_schema(&self, columns: &[ColumnRef]) -> SchemaRef {
        let fields: Vec<Field> = columns
            .iter()
            .map(|column| match column {
                ColumnRef::Time => Field::new("time", time_type(), false),
                ColumnRef::Tag(i) => {
                    let name = self.schema.tags.get(*i).map_or("", |t| t.name.as_str());
                    Field::new(name, tag_type(), true)
                }
                ColumnRef::Field(i) => match self.schema.fields.get(*i) {
                    Some(f) => Field::new(&f.name, arrow_type(f.ty), true),
                    None => Field::new("", DataType::Null, true),
                },
            })
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// Prunes, then returns the streams. Files are opened here (footer and directory only).
    pub fn scan(
        self: &Arc<Self>,
        request: ScanRequest,
    ) -> BoxFuture<'static, Result<Scan, ReadError>> {
        let table = Arc::clone(self);
        Box::pin(async move { plan_scan(table, request).await })
    }
}

async fn plan_scan(table: Arc<TableSnapshot>, mut request: ScanRequest) -> Result<Scan, ReadError> {
    // Whatever is asked, what is out of retention is not shown, also of files that have more.
    request.time.start = request.time.start.max(table.shown_from);
    let fields: Vec<(u32, FieldType)> = {
        let mut wanted: Vec<usize> = request
            .columns
            .iter()
            .filter_map(|c| if let ColumnRef::Field(i) = c { Some(*i) } else { None })
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.iter().filter_map(|i| table.schema.fields.get(*i)).map(|f| (f.id, f.ty)).collect()
    };
    let mut stats = ScanStats {
        files: table.version.files.len(),
        series: table.series.len(),
        ..ScanStats::default()
    };
    let mut inputs = Vec::new();
    let mut files: Vec<_> = table
        .version
        .files
        .iter()
        .filter(|f| f.t_min < request.time.end && f.t_max >= request.time.start)
        .cloned()
        .collect();
    files.sort_by_key(|f| (f.lsn_hi, f.lsn_lo));
    stats.files_in_range = files.len();
    for entry in files {
        let file = table.access.open(&entry).await?;
        let spans = file_spans(&file, &table.series, &request)?;
        if !spans.is_empty() {
            stats.files_read += 1;
            let stones = concerning(&table.version.tombstones, &entry);
            inputs.push((Input::File(file, stones), spans));
        }
    }
    if let Some(run) = memory_run(&table, &request, &fields)? {
        let spans = run_spans(&run, &table.series)?;
        inputs.push((Input::Memory(run.batch), spans));
    }
    let mut rows_by_rank: Vec<(u32, u64)> = Vec::new();
    for span in inputs.iter().flat_map(|(_, spans)| spans) {
        rows_by_rank.push((span.rank, u64::from(span.rows)));
    }
    rows_by_rank.sort_unstable_by_key(|r| r.0);
    rows_by_rank.dedup_by(|b, a| {
        let same = a.0 == b.0;
        if same {
            a.1 += b.1;
        }
        same
    });
    stats.series_read = rows_by_rank.len();
    stats.rows = rows_by_rank.iter().map(|r| r.1).sum();

    let schema = table.arrow_schema(&request.columns);
    let plan = Arc::new(Plan {
        inputs,
        fields,
        columns: request.columns,
        schema: Arc::clone(&schema),
        time: request.time,
        table,
        limit: request.limit,
    });
    let groups = group(&rows_by_rank, request.group_rows.max(1) as u64);
    let partitions = split(groups, request.partitions.max(1));
    Ok(Scan { schema, stats, plan, partitions })
}

fn wanted(request: &ScanRequest, ordinal: u32) -> bool {
    let series = request.series.as_ref();
    series.is_none_or(|s| s.get(ordinal as usize).copied().unwrap_or(false))
}

/// The spans that `wants`, by the ordinal of their series, with their ranks. Merging relies on
/// strictly rising ranks, so all spans are checked for it.
pub(crate) fn ranked(
    spans: &[SeriesSpan],
    view: &SeriesView,
    place: impl Fn() -> String,
    wants: impl Fn(&SeriesSpan, u32) -> bool,
) -> Result<Vec<Span>, ReadError> {
    let mut out = Vec::new();
    let mut before = None;
    for span in spans {
        let sid = span.sid;
        let found = view.ordinal(sid).and_then(|o| Some((o, *view.rank.get(o as usize)?)));
        let (ordinal, rank) =
            found.ok_or_else(|| ReadError::UnknownSeries { place: place(), sid })?;
        if before.is_some_and(|before| before >= rank) {
            return Err(ReadError::OutOfOrder { place: place(), sid });
        }
        before = Some(rank);
        if wants(span, ordinal) {
            out.push(Span { rank, start: span.start, rows: span.rows });
        }
    }
    Ok(out)
}

fn file_spans(
    file: &ColumnFile,
    view: &SeriesView,
    request: &ScanRequest,
) -> Result<Vec<Span>, ReadError> {
    ranked(
        file.directory().spans(),
        view,
        || file.place(),
        |span, ordinal| {
            let in_time = span.t_min < request.time.end && span.t_max >= request.time.start;
            in_time && wanted(request, ordinal)
        },
    )
}

fn run_spans(run: &Run, view: &SeriesView) -> Result<Vec<Span>, ReadError> {
    ranked(&run.series, view, || "the memtable".to_owned(), |_, _| true)
}

fn memory_run(
    table: &TableSnapshot,
    request: &ScanRequest,
    fields: &[(u32, FieldType)],
) -> Result<Option<Run>, ReadError> {
    let chunks = table.version.chunks();
    let filter = RowFilter {
        time: request.time.clone(),
        series: request.series.as_ref().map(|s| s.as_slice()),
    };
    let mut runs = sort_chunks(&chunks, &filter, fields, &table.series, |_| 0)?;
    Ok(runs.pop_first().map(|(_, run)| run))
}

/// Consecutive ranks with about `rows` rows, as inclusive rank ranges with their row counts.
fn group(rows_by_rank: &[(u32, u64)], rows: u64) -> Vec<(u32, u32, u64)> {
    let mut groups: Vec<(u32, u32, u64)> = Vec::new();
    for (rank, n) in rows_by_rank {
        match groups.last_mut() {
            Some(last) if last.2 + n <= rows => {
                last.1 = *rank;
                last.2 += n;
            }
            _ => groups.push((*rank, *rank, *n)),
        }
    }
    groups
}

/// Splits groups into at most `parts` consecutive lists of about equal rows.
fn split(groups: Vec<(u32, u32, u64)>, parts: usize) -> Vec<Vec<(u32, u32)>> {
    let total: u64 = groups.iter().map(|g| g.2).sum();
    let share = total.div_ceil(parts as u64).max(1);
    let mut out: Vec<Vec<(u32, u32)>> = Vec::new();
    let mut filled = share;
    for (lo, hi, rows) in groups {
        if filled >= share && out.len() < parts {
            out.push(Vec::new());
            filled = 0;
        }
        if let Some(last) = out.last_mut() {
            last.push((lo, hi));
        }
        filled += rows;
    }
    if out.is_empty() {
        out.push(Vec::new());
    }
    out
}

fn stream(
    plan: Arc<Plan>,
    groups: Vec<(u32, u32)>,
) -> BoxStream<'static, Result<RecordBatch, ReadError>> {
    let state = (plan, groups.into_iter(), 0usize);
    futures::stream::try_unfold(state, |(plan, mut groups, sent)| async move {
        loop {
            if plan.limit.is_some_and(|limit| sent >= limit) {
                return Ok(None);
            }
            let Some((lo, hi)) = groups.next() else { return Ok(None) };
            if let Some(batch) = read_group(&plan, lo, hi).await? {
                let sent = sent + batch.num_rows();
                return Ok(Some((batch, (plan, groups, sent))));
            }
        }
    })
    .boxed()
}

/// Reads, trims and merges one group of series.
async fn read_group(plan: &Plan, lo: u32, hi: u32) -> Result<Option<RecordBatch>, ReadError> {
    let mut sources = Vec::new();
    for (input, spans) in &plan.inputs {
        let from = spans.partition_point(|s| s.rank < lo);
        let to = spans.partition_point(|s| s.rank <= hi);
        let spans = spans.get(from..to).unwrap_or_default();
        if spans.is_empty() {
            continue;
        }
        let source = match input {
            Input::Memory(batch) => {
                let stretch = |s: &Span| Stretch {
                    rank: s.rank,
                    start: s.start as usize,
                    rows: s.rows as usize,
                };
                Source { batch: batch.clone(), stretches: spans.iter().map(stretch).collect() }
            }
            Input::File(file, stones) => {
                let source = read_file(file, spans, &plan.fields).await?;
                erase(source, stones, &plan.table.series)?
            }
        };
        let source = trim(source, &plan.time)?;
        if !source.stretches.is_empty() {
            sources.push(source);
        }
    }
    if sources.is_empty() {
        return Ok(None);
    }
    let merged = merge::merge(&sources)?;
    Ok(Some(project(plan, &merged)?))
}

async fn read_file(
    file: &Arc<ColumnFile>,
    spans: &[Span],
    fields: &[(u32, FieldType)],
) -> Result<Source, ReadError> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut stretches = Vec::with_capacity(spans.len());
    let mut at = 0usize;
    for span in spans {
        match ranges.last_mut() {
            Some(last) if last.end == span.start => last.end += span.rows,
            _ => ranges.push(span.start..span.start + span.rows),
        }
        stretches.push(Stretch { rank: span.rank, start: at, rows: span.rows as usize });
        at += span.rows as usize;
    }
    Ok(Source { batch: file.read_whole(&ranges, fields).await?, stretches })
}

/// Narrows each stretch to the asked time range; rows are in time order inside a stretch.
fn trim(mut source: Source, range: &Range<i64>) -> Result<Source, ReadError> {
    let time = merge::times(&source.batch)?;
    source.stretches.retain_mut(|s| {
        let Some(rows) = time.get(s.start..s.start + s.rows) else { return false };
        let from = rows.partition_point(|t| *t < range.start);
        let to = rows.partition_point(|t| *t < range.end);
        s.start += from;
        s.rows = to.saturating_sub(from);
        s.rows > 0
    });
    Ok(source)
}

/// Puts the columns in the asked order and adds the tags, one dictionary entry per series.
fn project(plan: &Plan, merged: &merge::Merged) -> Result<RecordBatch, ReadError> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(plan.columns.len());
    for column in &plan.columns {
        columns.push(match column {
            ColumnRef::Time => Arc::clone(merged.batch.column(0)),
            ColumnRef::Field(i) => {
                let id = plan.table.schema.fields.get(*i).map(|f| f.id);
                let at = plan.fields.iter().position(|f| Some(f.0) == id).ok_or_else(|| {
                    ArrowError::SchemaError(format!("column {i} is not in the scan"))
                })?;
                Arc::clone(merged.batch.column(at + 1))
            }
            ColumnRef::Tag(i) => tag_column(plan, *i, &merged.series)?,
        });
    }
    let options =
        arrow::array::RecordBatchOptions::new().with_row_count(Some(merged.batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(&plan.schema), columns, &options)?)
}

fn tag_column(plan: &Plan, tag: usize, series: &[(u32, usize)]) -> Result<ArrayRef, ReadError> {
    let view = &plan.table.series;
    let name = plan.table.schema.tags.get(tag).map_or("", |t| t.name.as_str());
    let mut values: Vec<&str> = Vec::new();
    let mut keys: Vec<Option<i32>> = Vec::new();
    for (rank, rows) in series {
        let entry =
            view.order.get(*rank as usize).and_then(|ordinal| view.entries.get(*ordinal as usize));
        let value = entry.and_then(|e| e.key.get(name));
        let key = match value {
            None => None,
            // Neighbouring series often share a leading tag.
            Some(v) if values.last() == Some(&v) => Some(values.len() as i32 - 1),
            Some(v) => {
                values.push(v);
                Some(values.len() as i32 - 1)
            }
        };
        keys.extend(std::iter::repeat_n(key, *rows));
    }
    let keys = Int32Array::from(keys);
    let values = Arc::new(StringArray::from(values));
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values)?))
}

#[cfg(test)]
mod tests;
