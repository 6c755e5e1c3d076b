//! Tombstones: which rows of which files are deleted, and how they are left out.
//!
//! Owns: the one test that says whether a tombstone concerns a file, and the cutting of rows. Scans
//! and merges both go through it, so that a query and a merged file never disagree.
//! A tombstone has a log position: it takes rows that were durable before it and no others. At its
//! commit every such row is in a file whose positions end at or below it; a row that comes later is
//! in a file that ends above it. A merge of both leaves the older rows out while it reads them, so
//! its output is free of them although it ends above.
//! Invariants: D2 a row newer than a tombstone is never taken by it; R4 a row that a tombstone took
//! is in no file that was written after it.

use std::sync::Arc;

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
    error::ArrowError,
};
use millrace_protocol::ids::SeriesId;
use serde::{Deserialize, Serialize};

use crate::{
    manifest::FileEntry,
    merge::{Source, Stretch, times},
    planted::{Bug, planted},
    series::dictionary::SeriesView,
};

/// Why rows were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody said so; their bytes are rewritten away.
    Statement,
    /// They were out of retention when files beside them went. Their bytes go with their file.
    Retention,
}

/// Rows of one table that are deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The manifest record that made it: rises with each.
    pub id: u64,
    /// It takes rows whose log position is this or lower.
    pub seq: u64,
    /// First time, ns.
    pub t_min: i64,
    /// Last time, ns.
    pub t_max: i64,
    /// Of these series, in order of their ids; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Vec<SeriesId>>,
    /// Why.
    pub cause: Cause,
    /// When it was made, ns since 1970: what its rewriting is due by.
    pub made_ns: i64,
}

impl Tombstone {
    /// Whether rows of a file may be taken by it.
    pub(crate) fn concerns(&self, file: &FileEntry) -> bool {
        let older = file.lsn_hi <= self.seq || planted(Bug::DeleteTakesNewer);
        older && file.erased_to < self.id && file.t_min <= self.t_max && file.t_max >= self.t_min
    }

    fn takes(&self, sid: SeriesId) -> bool {
        self.series.as_ref().is_none_or(|all| all.binary_search(&sid).is_ok())
    }
}

/// Those of the tombstones that concern a file.
pub(crate) fn concerning(tombstones: &[Arc<Tombstone>], file: &FileEntry) -> Vec<Arc<Tombstone>> {
    tombstones.iter().filter(|t| t.concerns(file)).cloned().collect()
}

/// Tombstones that take nothing any more: no file that is left has rows from before them.
pub(crate) fn ended<'a>(
    tombstones: &'a [Arc<Tombstone>],
    files: &'a [Arc<FileEntry>],
) -> impl Iterator<Item = u64> + 'a {
    let early = planted(Bug::TombstoneEndsEarly);
    tombstones.iter().filter(move |t| early || !files.iter().any(|f| t.concerns(f))).map(|t| t.id)
}

/// Leaves out the rows of a source that tombstones take; `view` tells which series a rank is.
pub(crate) fn erase(
    source: Source,
    tombstones: &[Arc<Tombstone>],
    view: &SeriesView,
) -> Result<Source, ArrowError> {
    if tombstones.is_empty() {
        return Ok(source);
    }
    let time = times(&source.batch)?;
    let mut keep = vec![true; source.batch.num_rows()];
    let mut stretches = Vec::with_capacity(source.stretches.len());
    let (mut taken, mut at) = (false, 0);
    // What no stretch covers is not asked for.
    let mut covered = vec![false; keep.len()];
    for stretch in &source.stretches {
        let rows = stretch.start..stretch.start + stretch.rows;
        covered.get_mut(rows.clone()).unwrap_or_default().fill(true);
        let gone =
            taken_rows(time.get(rows.clone()).unwrap_or_default(), stretch.rank, tombstones, view);
        let mut left = stretch.rows;
        for range in gone {
            let part = keep.get_mut(rows.start + range.start..rows.start + range.end);
            for row in part.unwrap_or_default() {
                left -= usize::from(std::mem::replace(row, false));
            }
        }
        taken |= left < stretch.rows;
        if left > 0 {
            stretches.push(Stretch { rank: stretch.rank, start: at, rows: left });
            at += left;
        }
    }
    if !taken {
        return Ok(source);
    }
    let mask: BooleanArray = keep.iter().zip(&covered).map(|(k, c)| Some(*k && *c)).collect();
    Ok(Source { batch: filter_record_batch(&source.batch, &mask)?, stretches })
}

/// Leaves out rows of one series.
pub(crate) fn erase_series(
    batch: RecordBatch,
    rank: u32,
    tombstones: &[Arc<Tombstone>],
    view: &SeriesView,
) -> Result<RecordBatch, ArrowError> {
    let rows = batch.num_rows();
    if rows == 0 || tombstones.is_empty() {
        return Ok(batch);
    }
    let source = Source { batch, stretches: vec![Stretch { rank, start: 0, rows }] };
    Ok(erase(source, tombstones, view)?.batch)
}

/// Ranges of rows of one series, in time order, that are taken.
fn taken_rows(
    time: &[i64],
    rank: u32,
    tombstones: &[Arc<Tombstone>],
    view: &SeriesView,
) -> Vec<std::ops::Range<usize>> {
    let ordinal = view.order.get(rank as usize).copied().unwrap_or(u32::MAX);
    let Some(entry) = view.entries.get(ordinal as usize) else { return Vec::new() };
    let of = |t: &Arc<Tombstone>| {
        let from = time.partition_point(|row| *row < t.t_min);
        let to = time.partition_point(|row| *row <= t.t_max);
        (from < to && t.takes(entry.sid)).then_some(from..to)
    };
    tombstones.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compaction::model::entry;

    #[test]
    fn d2_a_tombstone_concerns_what_is_older_and_was_not_rewritten_since() {
        let tombstone = Tombstone {
            id: 7,
            seq: 100,
            t_min: 10,
            t_max: 20,
            series: None,
            cause: Cause::Statement,
            made_ns: 0,
        };
        let file = |time, lsn, erased_to| FileEntry { erased_to, ..entry(1, 0, time, lsn, 1) };
        assert!(tombstone.concerns(&file((20, 30), (1, 100), 0)));
        assert!(tombstone.concerns(&file((0, 10), (1, 5), 6)));
        assert!(
            !tombstone.concerns(&file((0, 30), (1, 101), 0)),
            "has newer rows, so a merge made it"
        );
        assert!(!tombstone.concerns(&file((0, 30), (1, 100), 7)), "rewritten since");
        assert!(!tombstone.concerns(&file((0, 9), (1, 100), 0)));
        assert!(!tombstone.concerns(&file((21, 30), (1, 100), 0)));
        let all = [Arc::new(tombstone)];
        let files = [Arc::new(file((0, 30), (1, 100), 0))];
        assert_eq!(ended(&all, &files).count(), 0);
        assert_eq!(ended(&all, &[]).collect::<Vec<_>>(), [7]);
    }
}
