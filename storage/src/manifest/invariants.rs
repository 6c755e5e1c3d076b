//! What a commit may not break, checked before it is written: a bug stops here.

use std::{collections::BTreeSet, sync::Arc};

use millrace_platform::invariant::{self, Broken};

use super::state::{Delta, FileEntry, Manifest, TableDelta, TableManifest};
use crate::{
    compaction::overlap::keeps_order,
    erase::{Cause, Tombstone},
};

/// Checks `delta` against the manifest it would change.
pub(crate) fn check(now: &Manifest, delta: &Delta) -> Result<(), Broken> {
    millrace_platform::invariant!(
        D1_FLUSHED_NEVER_BACK,
        delta.flushed_lsn >= now.flushed_lsn,
        delta.flushed_lsn,
        now.flushed_lsn
    )?;
    for (tenant, change) in &delta.tenants {
        let known = now.tenants.get(tenant);
        for (key, state) in &change.streams {
            let before = known.and_then(|t| t.streams.get(key)).map(|s| s.hi).unwrap_or_default();
            millrace_platform::invariant!(
                D2_WATERMARK_NEVER_BACK,
                state.hi >= before,
                state.hi,
                before
            )?;
        }
        for (id, table) in &change.tables {
            check_table(known.and_then(|t| t.tables.get(id)), table, delta.flushed_lsn)?;
        }
        for id in &change.dropped_tables {
            let known = known.is_some_and(|t| t.tables.contains_key(id));
            millrace_platform::invariant!(R4_DROPPED_TABLE_EXISTS, known, id)?;
        }
    }
    Ok(())
}

fn check_table(
    known: Option<&TableManifest>,
    change: &TableDelta,
    flushed_lsn: u64,
) -> Result<(), Broken> {
    let files = known.map(|t| t.files.as_slice()).unwrap_or_default();
    let ids: BTreeSet<[u8; 16]> = files.iter().map(|f| f.id).collect();
    for id in &change.removed_files {
        let known = ids.contains(id);
        millrace_platform::invariant!(D1_REMOVED_FILE_EXISTS, known, hex::encode(id))?;
    }
    for file in &change.added_files {
        millrace_platform::invariant!(
            D1_FILE_ID_IS_NEW,
            !ids.contains(&file.id),
            hex::encode(file.id)
        )?;
        let sane = file.rows > 0 && file.t_min <= file.t_max && file.lsn_lo <= file.lsn_hi;
        millrace_platform::invariant!(
            D1_FILE_BOUNDS_ARE_SANE,
            sane,
            file.rows,
            file.lsn_lo,
            file.lsn_hi
        )?;
        millrace_platform::invariant!(
            D1_FILE_IS_FLUSHED,
            file.lsn_hi <= flushed_lsn,
            file.lsn_hi,
            flushed_lsn
        )?;
    }
    check_series(known, change)?;
    check_tombstones(known, change, flushed_lsn)?;
    if change.removed_files.is_empty() {
        return Ok(());
    }
    // A merge keeps every row that it took in, up to equal ones, and stands where they stood.
    let removed: Vec<&FileEntry> =
        files.iter().filter(|f| change.removed_files.contains(&f.id)).map(AsRef::as_ref).collect();
    let (Some(lo), Some(hi)) =
        (removed.iter().map(|f| f.lsn_lo).min(), removed.iter().map(|f| f.lsn_hi).max())
    else {
        return Ok(());
    };
    for added in &change.added_files {
        let covers = added.lsn_lo == lo && added.lsn_hi == hi;
        millrace_platform::invariant!(
            D1_MERGE_COVERS_ITS_INPUTS,
            covers,
            added.lsn_lo,
            added.lsn_hi,
            lo,
            hi
        )?;
    }
    check_bounds(&removed, &change.added_files)?;
    check_gone(known, change, &removed)?;
    let left = files.iter().filter(|f| !change.removed_files.contains(&f.id));
    // Sequence-convex: seen from each input that it meets, what stays is as new or old as it was.
    if !change.added_files.is_empty() && !keeps_order(&removed, left.map(AsRef::as_ref)) {
        let detail = format!("a file lies between inputs {lo} to {hi}");
        return Err(invariant::broken("D2_MERGE_IS_SEQUENCE_CONVEX", detail));
    }
    Ok(())
}

/// A tombstone takes what is in files, is newer than all others, and ends once.
fn check_tombstones(
    known: Option<&TableManifest>,
    change: &TableDelta,
    flushed_lsn: u64,
) -> Result<(), Broken> {
    let now = known.map(|t| t.tombstones.as_slice()).unwrap_or_default();
    let newest = now.iter().map(|t| t.id).max().unwrap_or(0);
    for stone in &change.added_tombstones {
        let sane = stone.id > newest && stone.seq <= flushed_lsn && stone.t_min <= stone.t_max;
        millrace_platform::invariant!(D2_TOMBSTONE_IS_SANE, sane, stone.id, stone.seq, newest)?;
    }
    for id in &change.removed_tombstones {
        let there = now.iter().any(|t| t.id == *id);
        millrace_platform::invariant!(R4_ENDED_TOMBSTONE_EXISTS, there, id)?;
    }
    Ok(())
}

/// Files leave without others in their place only where their rows are deleted: all of them out of
/// retention, as the same record says, or some tombstone concerns each.
fn check_gone(
    known: Option<&TableManifest>,
    change: &TableDelta,
    removed: &[&FileEntry],
) -> Result<(), Broken> {
    if !change.added_files.is_empty() {
        return Ok(());
    }
    let before = known.map(|t| t.tombstones.as_slice()).unwrap_or_default();
    for file in removed {
        let expired = |t: &Tombstone| {
            t.cause == Cause::Retention && t.series.is_none() && file.t_max <= t.t_max
        };
        let gone = change.added_tombstones.iter().any(|t| expired(t) && t.concerns(file))
            || before.iter().any(|t| t.concerns(file));
        millrace_platform::invariant!(R1_FILES_LEAVE_FOR_A_REASON, gone, hex::encode(file.id))?;
    }
    Ok(())
}

/// A series section that leaves was there, and as many series enter as leave.
fn check_series(known: Option<&TableManifest>, change: &TableDelta) -> Result<(), Broken> {
    if change.removed_series.is_empty() {
        return Ok(());
    }
    let sections = known.map(|t| t.series_sections.as_slice()).unwrap_or_default();
    let leave = sections.iter().filter(|s| change.removed_series.contains(&s.section));
    let (left, count) = leave.fold((0, 0), |(n, count), s| (n + 1, count + s.count));
    let entered: u64 = change.added_series.iter().map(|s| s.count).sum();
    // A table without rows needs no series either.
    let empty = known.is_none_or(|t| t.files.is_empty()) && change.added_files.is_empty();
    let kept = left == change.removed_series.len() && (entered >= count || empty);
    millrace_platform::invariant!(D1_SERIES_ARE_KEPT, kept, left, entered, count)
}

/// A merge makes no rows, and none outside of its inputs' times: later decisions are made from
/// the bounds that stand here.
fn check_bounds(removed: &[&FileEntry], added: &[Arc<FileEntry>]) -> Result<(), Broken> {
    let rows_in: u64 = removed.iter().map(|f| f.rows).sum();
    let rows_out: u64 = added.iter().map(|f| f.rows).sum();
    millrace_platform::invariant!(D2_MERGE_MAKES_NO_ROWS, rows_out <= rows_in, rows_out, rows_in)?;
    let from = removed.iter().map(|f| f.t_min).min().unwrap_or(i64::MAX);
    let to = removed.iter().map(|f| f.t_max).max().unwrap_or(i64::MIN);
    let inside = added.iter().all(|f| f.t_min >= from && f.t_max <= to);
    millrace_platform::invariant!(D1_MERGE_KEEPS_ITS_BOUNDS, inside, from, to)
}
