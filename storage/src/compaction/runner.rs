//! Does one merge job: reads the inputs group by group and writes one file after the other.
//!
//! Owns: nothing that outlives the job. Holds one group of rows of each input and the encoded
//! pages of one output file (limits: `merge_group_bytes`, `merge_file_bytes`), whatever the size
//! of the job.
//! Never: changes the manifest; drops a row but one that a tombstone takes (erase.rs).

use std::{ops::Range, sync::Arc};

use arrow::array::{RecordBatch, new_empty_array};
use millrace_protocol::value::FieldType;

use super::planner::Job;
use crate::{
    column_file::{
        layout::Layout,
        reader::ColumnFile,
        stream::ColumnFileWriter,
        writer::{ColumnFileParts, FileProfile, WriteFileError},
    },
    erase::{Tombstone, concerning, erase, erase_series},
    files::FileAccess,
    merge::{self, Source, Stretch},
    planted::{Bug, planted},
    run::{Run, SeriesSpan},
    scan::{GROUP_ROWS, ReadError, Span, arrow_type, ranked},
    schema::TableSchema,
    series::dictionary::SeriesView,
};

/// Series with more rows than this many groups are merged piece by piece.
const LONG_GROUPS: u64 = 2;
/// Rows of a group at least, however large they are.
const GROUP_ROWS_MIN: u64 = 256;

/// Why a merge stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    /// An input.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An output.
    #[error(transparent)]
    Write(#[from] WriteFileError),
}

struct Input {
    file: Arc<ColumnFile>,
    /// What of it is deleted.
    tombstones: Vec<Arc<Tombstone>>,
    /// In rank order.
    spans: Vec<Span>,
}

/// One input's part of a long series: rows read and not yet merged, rows still to be read.
struct Cursor {
    input: usize,
    batch: RecordBatch,
    rest: Range<u32>,
}

/// Bytes of what a merge holds, about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Of an output file, sealed.
    pub(crate) file: usize,
    /// Of a group of rows, as they are in memory.
    pub(crate) group: usize,
}

/// See the module head.
pub(crate) struct Merger {
    inputs: Vec<Input>,
    fields: Vec<(u32, FieldType)>,
    schema: Arc<TableSchema>,
    view: Arc<SeriesView>,
    /// (rank, rows) of every input's series, sorted.
    ranks: Vec<(u32, u64)>,
    /// The next of `ranks`.
    at: usize,
    /// A long series that is being merged.
    long: Option<(u32, Vec<Cursor>)>,
    /// Rows of the next group: as many as the last one's rows say that memory holds. Sealed sizes
    /// do not tell: texts that repeat take a thousand times as much once they are read.
    group_rows: u64,
    sizes: Sizes,
    /// What the inputs say together.
    layout: Layout,
    /// A run that did not fit the columns of the last file.
    left_over: Option<Run>,
}

impl Merger {
    /// Opens the inputs. The outputs have every column that an input has.
    pub(crate) async fn open(
        job: &Job,
        schema: Arc<TableSchema>,
        view: Arc<SeriesView>,
        access: &FileAccess,
        sizes: Sizes,
        tombstones: &[Arc<Tombstone>],
    ) -> Result<Self, ReadError> {
        let mut inputs = Vec::new();
        for entry in job.inputs.iter().skip(usize::from(planted(Bug::MergeDropsInput))) {
            let file = access.open(entry).await?;
            let spans = ranked(file.directory().spans(), &view, || file.place(), |_, _| true)?;
            let tombstones = if planted(Bug::MergeKeepsDeleted) {
                Vec::new()
            } else {
                concerning(tombstones, entry)
            };
            inputs.push(Input { file, tombstones, spans });
        }
        let forgotten = usize::from(planted(Bug::MergeDropsField));
        let fields = schema
            .fields
            .iter()
            .skip(forgotten)
            .filter(|f| inputs.iter().any(|i| i.file.has_column(f.id)))
            .map(|f| (f.id, f.ty))
            .collect();
        let mut ranks: Vec<(u32, u64)> = inputs
            .iter()
            .flat_map(|i| i.spans.iter().map(|s| (s.rank, u64::from(s.rows))))
            .collect();
        ranks.sort_unstable();
        let layout = inputs.iter().fold(Layout::default(), |all, i| all.join(&i.file.layout()));
        Ok(Self {
            inputs,
            fields,
            schema,
            view,
            ranks,
            at: 0,
            long: None,
            group_rows: GROUP_ROWS_MIN,
            sizes,
            layout,
            left_over: None,
        })
    }

    /// The next output file; `None` when all rows are written. Files of one job have disjoint
    /// rows, in order.
    pub(crate) async fn next_file(&mut self) -> Result<Option<ColumnFileParts>, MergeError> {
        let first = match self.left_over.take() {
            Some(run) => run,
            None => match self.next_rows().await? {
                Some(run) => run,
                None => return Ok(None),
            },
        };
        let (schema, profile) = (&self.schema, FileProfile::Merged);
        let mut file = ColumnFileWriter::begin(first, schema, profile, &self.layout)?
            .collecting(self.sizes.group);
        while file.bytes() < self.sizes.file {
            let Some(run) = self.next_rows().await? else { break };
            self.left_over = file.push(run, &self.schema)?;
            if self.left_over.is_some() {
                break;
            }
        }
        Ok(Some(file.finish(&self.schema)?))
    }

    /// The next run that has rows: all of a group may be deleted.
    async fn next_rows(&mut self) -> Result<Option<Run>, ReadError> {
        loop {
            match self.next_run().await? {
                Some(run) if run.rows() == 0 => {}
                other => return Ok(other),
            }
        }
    }

    async fn next_run(&mut self) -> Result<Option<Run>, ReadError> {
        if self.long.is_some() {
            return self.next_of_long().await;
        }
        let Some((lo, hi, rows)) = self.next_group() else { return Ok(None) };
        if lo == hi && rows > LONG_GROUPS * self.group_rows {
            self.long = Some((lo, self.cursors(lo)));
            return self.next_of_long().await;
        }
        let mut sources = Vec::new();
        for input in &self.inputs {
            if let Some(source) = read(input, lo, hi, &self.fields, &self.view).await? {
                sources.push(source);
            }
        }
        let run = self.merged(&sources)?;
        let row_bytes = (run.batch.get_array_memory_size() / run.rows().max(1)).max(1);
        let fits = (self.sizes.group / row_bytes) as u64;
        // Slowly up, at once down: the rows of the next series may be larger.
        self.group_rows = fits.min(self.group_rows * 4).clamp(GROUP_ROWS_MIN, GROUP_ROWS as u64);
        Ok(Some(run))
    }

    /// Ranks with about `group_rows` rows, and how many rows.
    fn next_group(&mut self) -> Option<(u32, u32, u64)> {
        let lo = self.ranks.get(self.at)?.0;
        let (mut hi, mut rows) = (lo, 0u64);
        while let Some((rank, n)) = self.ranks.get(self.at) {
            if *rank != hi && rows + n > self.group_rows {
                break;
            }
            hi = *rank;
            rows += n;
            self.at += 1;
        }
        Some((lo, hi, rows))
    }

    fn cursors(&self, rank: u32) -> Vec<Cursor> {
        let of = |(input, i): (usize, &Input)| {
            let at = i.spans.binary_search_by_key(&rank, |s| s.rank).ok()?;
            let span = i.spans.get(at)?;
            let rest = span.start..span.start + span.rows;
            let schema = Arc::new(arrow::datatypes::Schema::empty());
            Some(Cursor { input, batch: RecordBatch::new_empty(schema), rest })
        };
        self.inputs.iter().enumerate().filter_map(of).collect()
    }

    /// The next piece of a long series: all rows up to the smallest time at which an input has
    /// more to be read.
    async fn next_of_long(&mut self) -> Result<Option<Run>, ReadError> {
        let Some((rank, mut cursors)) = self.long.take() else { return Ok(None) };
        // At most [`GROUP_ROWS`], so that it fits.
        let step = (self.group_rows / cursors.len().max(1) as u64).max(GROUP_ROWS_MIN) as u32;
        for cursor in cursors.iter_mut().filter(|c| c.batch.num_rows() == 0 && !c.rest.is_empty()) {
            let Some(input) = self.inputs.get(cursor.input) else { continue };
            // Until it has a row that is not deleted: where it ends is where the piece may end.
            while cursor.batch.num_rows() == 0 && !cursor.rest.is_empty() {
                let end = cursor.rest.end.min(cursor.rest.start.saturating_add(step));
                let rows = cursor.rest.start..end;
                let read = input.file.read_whole(std::slice::from_ref(&rows), &self.fields).await?;
                cursor.batch = erase_series(read, rank, &input.tombstones, &self.view)?;
                cursor.rest.start = end;
            }
        }
        let mut cut = i64::MAX;
        for cursor in cursors.iter().filter(|c| !c.rest.is_empty()) {
            cut = merge::times(&cursor.batch)?.last().copied().unwrap_or(cut).min(cut);
        }
        let mut sources = Vec::new();
        for cursor in cursors.iter_mut().filter(|c| c.batch.num_rows() > 0) {
            let rows = merge::times(&cursor.batch)?.partition_point(|t| *t <= cut);
            if rows > 0 {
                let batch = cursor.batch.slice(0, rows);
                sources.push(Source { batch, stretches: vec![Stretch { rank, start: 0, rows }] });
                cursor.batch = cursor.batch.slice(rows, cursor.batch.num_rows() - rows);
            }
        }
        let run = self.merged(&sources)?;
        cursors.retain(|c| c.batch.num_rows() > 0 || !c.rest.is_empty());
        if !cursors.is_empty() {
            self.long = Some((rank, cursors));
        }
        Ok(Some(run))
    }

    /// A run without rows.
    fn nothing(&self) -> Result<Run, ReadError> {
        let ids = self.fields.iter().map(|f| f.0).collect();
        let empty = |(_, ty): &(u32, FieldType)| new_empty_array(&arrow_type(*ty));
        let fields = self.fields.iter().map(empty).collect();
        Ok(Run::new(Vec::new(), ids, fields, Vec::new())?)
    }

    fn merged(&self, sources: &[Source]) -> Result<Run, ReadError> {
        if sources.is_empty() {
            return self.nothing();
        }
        let part = merge::merge(sources)?;
        let time = merge::times(&part.batch)?;
        let mut series = Vec::with_capacity(part.series.len());
        let mut at = 0usize;
        for (rank, rows) in &part.series {
            let ordinal = self.view.order.get(*rank as usize).copied().unwrap_or(u32::MAX);
            let sid = self.view.entries.get(ordinal as usize).map(|e| e.sid).unwrap_or_default();
            let bounds = time.get(at..at + rows).unwrap_or_default();
            series.push(SeriesSpan {
                sid,
                start: at as u32,
                rows: *rows as u32,
                t_min: bounds.first().copied().unwrap_or(0),
                t_max: bounds.last().copied().unwrap_or(0),
            });
            at += rows;
        }
        Ok(Run { field_ids: self.fields.iter().map(|f| f.0).collect(), batch: part.batch, series })
    }
}

async fn read(
    input: &Input,
    lo: u32,
    hi: u32,
    fields: &[(u32, FieldType)],
    view: &SeriesView,
) -> Result<Option<Source>, ReadError> {
    let from = input.spans.partition_point(|s| s.rank < lo);
    let to = input.spans.partition_point(|s| s.rank <= hi);
    let spans = input.spans.get(from..to).unwrap_or_default();
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Ok(None) };
    let start = first.start;
    let rows = start..last.start + last.rows;
    let batch = input.file.read_whole(std::slice::from_ref(&rows), fields).await?;
    let stretches = spans
        .iter()
        .map(|s| Stretch { rank: s.rank, start: (s.start - start) as usize, rows: s.rows as usize })
        .collect();
    let source = erase(Source { batch, stretches }, &input.tombstones, view)?;
    Ok((!source.stretches.is_empty()).then_some(source))
}
