//! Which files to merge next: a pure function of a table's files.
//!
//! Invariants: inputs of a job are neighbours in version order among the files of their window,
//! so that the output can take their place (sequence-convex); a job's rows are capped.

use std::{collections::BTreeMap, sync::Arc};

use crate::{limits::EngineLimits, manifest::FileEntry};

/// Files to merge into one, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The inputs, at least two, oldest first.
    pub inputs: Vec<Arc<FileEntry>>,
}

/// The first job worth doing, if any: windows with most files first.
pub(crate) fn plan(files: &[Arc<FileEntry>], limits: &EngineLimits) -> Option<Job> {
    let mut windows: BTreeMap<i64, Vec<Arc<FileEntry>>> = BTreeMap::new();
    for file in files {
        let window = file.t_min.div_euclid(limits.window_ns.max(1));
        windows.entry(window).or_default().push(Arc::clone(file));
    }
    let mut windows: Vec<_> = windows.into_values().collect();
    windows.sort_by_key(|w| std::cmp::Reverse(w.len()));
    windows.into_iter().find_map(|mut window| {
        window.sort_by_key(|f| (f.lsn_hi, f.lsn_lo));
        job_in(&window, limits)
    })
}

/// The longest run of neighbours that stays under the row cap, if it has enough files.
fn job_in(window: &[Arc<FileEntry>], limits: &EngineLimits) -> Option<Job> {
    let wanted = limits.merge_files.max(2);
    let mut best: &[Arc<FileEntry>] = &[];
    for start in 0..window.len() {
        let mut rows = 0;
        let run = window.get(start..).unwrap_or_default();
        let len = run
            .iter()
            .take_while(|f| {
                rows += f.rows;
                rows <= limits.merge_rows_max
            })
            .count();
        if len > best.len() {
            best = run.get(..len).unwrap_or_default();
        }
    }
    (best.len() >= wanted).then(|| Job { inputs: best.to_vec() })
}
