//! Which files to merge next: a pure function of a table's files.
//!
//! Invariants: inputs of a job are neighbours in version order among the files of their window,
//! and no file of another window that overlaps them in time lies between them, so that the output
//! can take their place (sequence-convex); a job's rows and bytes are capped.

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
        job_in(&window, limits).filter(|job| is_convex(job, files))
    })
}

/// Whether every file that stays and overlaps the job in time is wholly older or wholly newer.
/// Files of one window always are; files written with other window lengths may not be.
fn is_convex(job: &Job, files: &[Arc<FileEntry>]) -> bool {
    let lo = job.inputs.iter().map(|f| f.lsn_lo).min().unwrap_or(0);
    let hi = job.inputs.iter().map(|f| f.lsn_hi).max().unwrap_or(0);
    let t_min = job.inputs.iter().map(|f| f.t_min).min().unwrap_or(0);
    let t_max = job.inputs.iter().map(|f| f.t_max).max().unwrap_or(0);
    files.iter().filter(|f| !job.inputs.iter().any(|i| i.id == f.id)).all(|f| {
        let overlaps = f.t_min <= t_max && f.t_max >= t_min;
        !overlaps || f.lsn_hi <= lo || f.lsn_hi >= hi
    })
}

/// The longest run of neighbours that stays under the caps, if it has enough files.
fn job_in(window: &[Arc<FileEntry>], limits: &EngineLimits) -> Option<Job> {
    let wanted = limits.merge_files.max(2);
    let mut best: &[Arc<FileEntry>] = &[];
    for start in 0..window.len() {
        let (mut rows, mut bytes) = (0u64, 0u64);
        let run = window.get(start..).unwrap_or_default();
        let len = run
            .iter()
            .take_while(|f| {
                rows = rows.saturating_add(f.rows);
                bytes = bytes.saturating_add(f.bytes);
                rows <= limits.merge_rows_max && bytes <= limits.merge_bytes_max
            })
            .count();
        if len > best.len() {
            best = run.get(..len).unwrap_or_default();
        }
    }
    (best.len() >= wanted).then(|| Job { inputs: best.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_protocol::ids::TenantId;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        column_file::bundle::SectionRef,
        manifest::{
            Delta, Manifest, TableDelta, TableManifest, TenantDelta, TenantManifest, invariants,
        },
        schema::TableSchema,
    };

    const TENANT: TenantId = TenantId([1; 16]);

    fn file(id: u8, lsn: u64, t_min: i64, span: i64, size: u64) -> Arc<FileEntry> {
        let section = SectionRef { object: [id; 16], section_id: [id; 16], offset: 0, len: 1 };
        Arc::new(FileEntry {
            id: [id; 16],
            table_id: 1,
            parquet: section.clone(),
            directory: section,
            level: 0,
            t_min,
            t_max: t_min + span,
            rows: size,
            lsn_lo: lsn,
            lsn_hi: lsn,
            bytes: size,
        })
    }

    fn limits() -> EngineLimits {
        EngineLimits {
            window_ns: 10,
            merge_files: 2,
            merge_rows_max: 100,
            merge_bytes_max: 100,
            ..EngineLimits::default()
        }
    }

    /// Commits the job as the flush does; the invariants panic if it is not convex.
    fn commit(files: &[Arc<FileEntry>], job: &Job) {
        let schema = TableSchema::new(1, "t");
        let table = TableManifest {
            database: "d".into(),
            schema: schema.clone(),
            files: files.to_vec(),
            series_sections: Vec::new(),
        };
        let tenant =
            TenantManifest { tables: BTreeMap::from([(1, table)]), ..TenantManifest::default() };
        let now = Manifest {
            flushed_lsn: u64::MAX,
            tenants: BTreeMap::from([(TENANT, Arc::new(tenant))]),
            ..Manifest::default()
        };
        let edge = |f: fn(&FileEntry) -> i64| job.inputs.iter().map(move |i| f(i));
        let mut merged = FileEntry::clone(&file(255, 0, 0, 0, 1));
        merged.t_min = edge(|f| f.t_min).min().unwrap();
        merged.t_max = edge(|f| f.t_max).max().unwrap();
        merged.lsn_lo = job.inputs.iter().map(|f| f.lsn_lo).min().unwrap();
        merged.lsn_hi = job.inputs.iter().map(|f| f.lsn_hi).max().unwrap();
        let change = TableDelta {
            database: "d".into(),
            schema,
            added_files: vec![Arc::new(merged)],
            removed_files: job.inputs.iter().map(|f| f.id).collect(),
            added_series: Vec::new(),
        };
        let tenant =
            TenantDelta { tables: BTreeMap::from([(1, change)]), ..TenantDelta::default() };
        let delta = Delta { flushed_lsn: u64::MAX, tenants: BTreeMap::from([(TENANT, tenant)]) };
        invariants::check(&now, &delta).unwrap();
    }

    proptest! {
        #[test]
        fn d2_every_planned_merge_is_sequence_convex_and_within_the_caps(
            shapes in proptest::collection::vec((0i64..30, 0i64..25, 1u64..60), 1..12)
        ) {
            let files: Vec<_> = shapes
                .iter()
                .zip(1u8..)
                .map(|((t, span, size), id)| file(id, u64::from(id), *t, *span, *size))
                .collect();
            if let Some(job) = plan(&files, &limits()) {
                prop_assert!(job.inputs.len() >= 2);
                prop_assert!(job.inputs.iter().map(|f| f.bytes).sum::<u64>() <= 100);
                prop_assert!(job.inputs.is_sorted_by_key(|f| f.lsn_hi), "oldest first");
                commit(&files, &job);
            }
        }
    }

    #[test]
    fn small_files_of_a_window_are_merged_and_large_ones_left() {
        let files: Vec<_> = [(1, 10), (2, 90), (3, 20), (4, 30)]
            .map(|(id, n)| file(id, u64::from(id), 0, 5, n))
            .to_vec();
        let job = plan(&files, &limits()).unwrap();
        let ids: Vec<u8> = job.inputs.iter().map(|f| f.id[0]).collect();
        assert_eq!(ids, [1, 2]);
        assert!(plan(&files[1..2], &limits()).is_none());
    }
}
