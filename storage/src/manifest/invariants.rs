//! What a commit may not break, checked before it is written: a bug stops here.

use std::collections::BTreeSet;

use millrace_platform::invariant::{self, Broken};

use super::state::{Delta, FileEntry, Manifest, TableDelta, TableManifest};

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
    for left in files.iter().filter(|f| !change.removed_files.contains(&f.id)) {
        for added in &change.added_files {
            let overlaps = left.t_min <= added.t_max && left.t_max >= added.t_min;
            // Sequence-convex: what stays and overlaps in time is wholly older or wholly newer.
            let between = left.lsn_hi > lo && left.lsn_hi < hi;
            if overlaps && between {
                let detail = format!("file {} lies between the inputs", hex::encode(left.id));
                return Err(invariant::broken("D2_MERGE_IS_SEQUENCE_CONVEX", detail));
            }
        }
    }
    Ok(())
}
