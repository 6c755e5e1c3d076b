//! How many files a point of time can lie in, measured from real bounds.
//!
//! Files that one merge wrote side by side have disjoint series and equal log positions: a series
//! is in one of them, so together they count as one. So do the files of one flush, whose times
//! are disjoint.

use std::{collections::BTreeMap, sync::Arc};

use crate::manifest::FileEntry;

/// A file's place in version order: the higher, the newer. Equal places hold no common row.
pub(crate) fn version(file: &FileEntry) -> (u64, u64) {
    (file.lsn_hi, file.lsn_lo)
}

/// Whether the bounds of two files have a time in common.
pub(crate) fn meet(a: &FileEntry, b: &FileEntry) -> bool {
    a.t_min <= b.t_max && b.t_min <= a.t_max
}

/// The largest number of versions that share a point of time.
pub(crate) fn overlap(files: &[Arc<FileEntry>]) -> usize {
    deepest(files).0
}

/// The largest number of versions that share a point of time, and the first such point.
pub(crate) fn deepest(files: &[Arc<FileEntry>]) -> (usize, i64) {
    // Starts before ends at one time: bounds are inclusive.
    let mut edges: Vec<(i64, bool, (u64, u64))> = Vec::with_capacity(files.len() * 2);
    for file in files {
        edges.push((file.t_min, false, version(file)));
        edges.push((file.t_max, true, version(file)));
    }
    edges.sort_unstable();
    let mut open: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut best = (0, i64::MIN);
    for (time, ends, version) in edges {
        if ends {
            if let Some(n) = open.get_mut(&version) {
                *n -= 1;
                if *n == 0 {
                    open.remove(&version);
                }
            }
        } else {
            *open.entry(version).or_default() += 1;
            if open.len() > best.0 {
                best = (open.len(), time);
            }
        }
    }
    best
}

/// Whether one file in place of `inputs` leaves every file of `left` as new or as old as it was,
/// seen from each input that it meets in time. Only then may the inputs be merged: which value of
/// a row counts is decided by the order of versions.
pub(crate) fn keeps_order<'a>(
    inputs: &[&FileEntry],
    left: impl IntoIterator<Item = &'a FileEntry>,
) -> bool {
    let hi = inputs.iter().map(|f| f.lsn_hi).max().unwrap_or(0);
    let lo = inputs.iter().map(|f| f.lsn_lo).min().unwrap_or(0);
    left.into_iter().all(|f| {
        inputs.iter().filter(|i| meet(f, i)).all(|i| {
            let before = version(f).cmp(&version(i));
            // Equal versions hold no common row: either order will do.
            before.is_eq() || before == version(f).cmp(&(hi, lo))
        })
    })
}

#[cfg(test)]
mod tests;
