//! Does one merge job: reads the inputs group by group, writes one file.
//!
//! Owns: nothing that outlives the job. Never: changes the manifest; drops a row.

use std::sync::Arc;

use arrow::{array::RecordBatch, compute::concat_batches};
use millrace_protocol::value::FieldType;

use super::planner::Job;
use crate::{
    files::FileAccess,
    merge::{self, Source, Stretch},
    planted::{Bug, planted},
    run::{Run, SeriesSpan},
    scan::{GROUP_ROWS, ReadError, Span, ranked},
    schema::TableSchema,
    series::dictionary::SeriesView,
};

struct Input {
    file: Arc<crate::column_file::reader::ColumnFile>,
    /// In rank order.
    spans: Vec<Span>,
}

/// Merges the job's inputs into one sorted run with every field of the table.
pub(crate) async fn run(
    job: &Job,
    schema: &TableSchema,
    view: &SeriesView,
    access: &FileAccess,
) -> Result<Run, ReadError> {
    let forgotten = usize::from(planted(Bug::MergeDropsField));
    let fields: Vec<(u32, FieldType)> =
        schema.fields.iter().skip(forgotten).map(|f| (f.id, f.ty)).collect();
    let mut inputs = Vec::new();
    for entry in job.inputs.iter().skip(usize::from(planted(Bug::MergeDropsInput))) {
        let file = access.open(entry).await?;
        let spans = ranked(file.directory().spans(), view, || file.place(), |_, _| true)?;
        inputs.push(Input { file, spans });
    }
    let mut ranks: Vec<(u32, u64)> =
        inputs.iter().flat_map(|i| i.spans.iter().map(|s| (s.rank, u64::from(s.rows)))).collect();
    ranks.sort_unstable();
    let mut merged: Vec<RecordBatch> = Vec::new();
    let mut series: Vec<SeriesSpan> = Vec::new();
    let mut row = 0u32;
    let mut from = 0usize;
    while from < ranks.len() {
        let (lo, hi, next) = next_group(&ranks, from);
        from = next;
        let mut sources = Vec::new();
        for input in &inputs {
            if let Some(source) = read(input, lo, hi, &fields).await? {
                sources.push(source);
            }
        }
        let part = merge::merge(&sources)?;
        let time = merge::times(&part.batch)?;
        let mut at = 0usize;
        for (rank, rows) in &part.series {
            let sid = view
                .order
                .get(*rank as usize)
                .and_then(|o| view.entries.get(*o as usize))
                .map(|e| e.sid)
                .unwrap_or_default();
            let bounds = time.get(at..at + rows).unwrap_or_default();
            series.push(SeriesSpan {
                sid,
                start: row,
                rows: *rows as u32,
                t_min: bounds.first().copied().unwrap_or(0),
                t_max: bounds.last().copied().unwrap_or(0),
            });
            at += rows;
            row += *rows as u32;
        }
        merged.push(part.batch);
    }
    let schema = merged.first().map(RecordBatch::schema).ok_or_else(|| {
        arrow::error::ArrowError::InvalidArgumentError("a merge job without rows".into())
    })?;
    let batch = concat_batches(&schema, &merged)?;
    Ok(Run { field_ids: fields.iter().map(|f| f.0).collect(), batch, series })
}

/// Ranks `lo..=hi` with about [`GROUP_ROWS`] rows, and where the next group starts.
fn next_group(ranks: &[(u32, u64)], from: usize) -> (u32, u32, usize) {
    let lo = ranks.get(from).map_or(0, |r| r.0);
    let (mut hi, mut rows, mut at) = (lo, 0u64, from);
    while let Some((rank, n)) = ranks.get(at) {
        if *rank != hi && rows + n > GROUP_ROWS as u64 {
            break;
        }
        hi = *rank;
        rows += n;
        at += 1;
    }
    (lo, hi, at)
}

async fn read(
    input: &Input,
    lo: u32,
    hi: u32,
    fields: &[(u32, FieldType)],
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
    Ok(Some(Source { batch, stretches }))
}
