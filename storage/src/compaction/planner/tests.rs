//! What the planner chooses, on files small enough to see, and that it always comes to an end.

use std::collections::BTreeMap;

use millrace_protocol::ids::TenantId;
use proptest::prelude::*;

use super::*;
use crate::{
    compaction::model::entry,
    manifest::{
        Delta, Manifest, TableDelta, TableManifest, TenantDelta, TenantManifest, invariants,
    },
    schema::TableSchema,
};

const TENANT: TenantId = TenantId([1; 16]);
/// Small windows: a day is 120.
const WINDOW: i64 = 10;
const NOW: i64 = 1_000_000;

fn limits() -> EngineLimits {
    EngineLimits {
        window_ns: WINDOW,
        merge_files: 2,
        merge_rows_max: 1_000,
        merge_bytes_max: 10_000,
        wide_bytes_max: 2_000,
        overlap_relief: 7,
        ..EngineLimits::default()
    }
}

fn file(id: u64, level: u8, time: (i64, i64), lsn: u64, rows: u64) -> Arc<FileEntry> {
    Arc::new(entry(id, level, time, (lsn, lsn), rows))
}

fn number(file: &FileEntry) -> u64 {
    u64::from_le_bytes(file.id[..8].try_into().unwrap())
}

fn ids(job: &Job) -> Vec<u8> {
    job.inputs.iter().map(|f| f.id[0]).collect()
}

/// What the job's commit does; the invariants panic where it may not be done.
fn commit(files: &[Arc<FileEntry>], job: &Job) -> Vec<Arc<FileEntry>> {
    let schema = TableSchema::new(1, "t");
    let table = TableManifest {
        database: "d".into(),
        schema: schema.clone(),
        files: files.to_vec(),
        series_sections: Vec::new(),
        tombstones: Vec::new(),
    };
    let tenant =
        TenantManifest { tables: BTreeMap::from([(1, table)]), ..TenantManifest::default() };
    let now = Manifest {
        flushed_lsn: u64::MAX,
        tenants: BTreeMap::from([(TENANT, Arc::new(tenant))]),
        ..Manifest::default()
    };
    let edge = |f: fn(&FileEntry) -> i64| job.inputs.iter().map(move |i| f(i));
    let time = (edge(|f| f.t_min).min().unwrap(), edge(|f| f.t_max).max().unwrap());
    let lsn = (
        job.inputs.iter().map(|f| f.lsn_lo).min().unwrap(),
        job.inputs.iter().map(|f| f.lsn_hi).max().unwrap(),
    );
    let next = files.iter().map(|f| number(f)).max().unwrap() + 100;
    let merged = Arc::new(entry(next, job.level, time, lsn, 1));
    let change = TableDelta {
        added_files: vec![Arc::clone(&merged)],
        removed_files: job.inputs.iter().map(|f| f.id).collect(),
        ..TableDelta::of("d", &schema)
    };
    let tenant = TenantDelta { tables: BTreeMap::from([(1, change)]), ..TenantDelta::default() };
    let delta = Delta { flushed_lsn: u64::MAX, tenants: BTreeMap::from([(TENANT, tenant)]) };
    invariants::check(&now, &delta).unwrap();
    let mut left: Vec<_> =
        files.iter().filter(|f| !job.inputs.iter().any(|i| i.id == f.id)).cloned().collect();
    left.push(merged);
    left
}

proptest! {
    #[test]
    fn d2_every_planned_merge_passes_the_commit_and_the_caps_and_planning_ends(
        shapes in proptest::collection::vec(
            (0i64..400, 0i64..150, 1u64..60, 0u8..6, 1u64..8), 1..14)
    ) {
        let mut files: Vec<_> = shapes
            .iter()
            .zip(1u64..)
            .map(|((t, span, rows, level, lsn), id)| {
                // Equal log positions belong to one flush, whose files do not overlap.
                file(id, *level, (*t, t + span), lsn * 100 + id, *rows)
            })
            .collect();
        let mut jobs = 0;
        while let Some(job) = plan(&files, &limits(), NOW) {
            prop_assert!(job.inputs.len() >= 2);
            prop_assert!(job.inputs.iter().map(|f| f.bytes).sum::<u64>() <= 10_000);
            prop_assert!(job.inputs.is_sorted_by_key(|f| f.lsn_hi), "oldest first");
            files = commit(&files, &job);
            jobs += 1;
            prop_assert!(jobs < 40, "planning does not come to an end");
        }
    }
}

#[test]
fn flushes_of_a_hot_window_are_merged_once_and_large_ones_left_alone() {
    let files = vec![
        file(1, level::L0, (0, 5), 1, 10),
        file(2, level::L0, (0, 6), 2, 10),
        file(3, level::HOT, (0, 7), 0, 10),
    ];
    let job = plan(&files, &limits(), NOW).unwrap();
    assert_eq!((ids(&job), job.level, job.reason), (vec![1, 2], level::HOT, Reason::Small));
    let alone = EngineLimits { merge_small_bytes: 0, ..limits() };
    let apart = vec![file(1, level::L0, (0, 4), 1, 10), file(2, level::L0, (5, 9), 2, 10)];
    assert!(plan(&apart, &alone, NOW).is_none(), "large and not overlapping");
    assert!(plan(&files, &alone, NOW).is_some(), "large but overlapping");
}

#[test]
fn a_sealed_day_becomes_one_base_and_late_files_stay_apart_until_they_are_enough() {
    // A row of day 3 seals day 0.
    let live = file(9, level::L0, (400, 401), 9, 1);
    let day: Vec<_> = (1..4)
        .map(|id| file(id, level::HOT, (id as i64 * 10, id as i64 * 10 + 9), id, 100))
        .collect();
    let mut files = [day, vec![Arc::clone(&live)]].concat();
    let job = plan(&files, &limits(), NOW).unwrap();
    assert_eq!((ids(&job), job.level, job.reason), (vec![1, 2, 3], level::DAY, Reason::Seal));
    files = vec![Arc::new(entry(1, level::DAY, (10, 39), (1, 3), 300)), Arc::clone(&live)];
    for id in 10..13 {
        files.push(file(id, level::L0, (12, 30), id, 1));
        assert!(plan(&files, &limits(), NOW).is_none(), "{id}: too few");
    }
    files.push(file(13, level::L0, (12, 30), 13, 1));
    let job = plan(&files, &limits(), NOW).unwrap();
    let late = vec![10, 11, 12, 13];
    assert_eq!((ids(&job), job.level, job.reason), (late, level::LATE + 1, Reason::Late));
    // Two late runs: small ones are merged with each other, large ones with the base they touch.
    for (rows, reason) in [(4, Reason::Late), (50, Reason::LateIntoBase)] {
        let files = vec![
            Arc::clone(&files[0]),
            Arc::clone(&live),
            file(20, level::LATE + 1, (12, 30), 20, rows),
            file(21, level::LATE + 1, (12, 30), 21, rows),
        ];
        let job = plan(&files, &limits(), NOW).unwrap();
        assert_eq!(job.reason, reason);
        assert_eq!(ids(&job).contains(&1), reason == Reason::LateIntoBase);
    }
}

#[test]
fn late_files_that_do_not_touch_a_base_leave_it_alone() {
    let files = vec![
        Arc::new(entry(1, level::DAY, (10, 39), (1, 3), 30)),
        file(9, level::L0, (400, 401), 9, 1),
        file(20, level::LATE + 1, (60, 70), 20, 30),
        file(21, level::LATE + 1, (60, 70), 21, 30),
    ];
    let job = plan(&files, &limits(), NOW).unwrap();
    assert_eq!((ids(&job), job.reason), (vec![20, 21], Reason::Late));
}

#[test]
fn too_much_overlap_goes_before_everything_else() {
    let mut files: Vec<_> = (1..8).map(|id| file(id, level::LATE + 1, (5, 300), id, 10)).collect();
    files.push(file(16, level::L0, (1000, 1001), 16, 1));
    files.push(file(17, level::L0, (1000, 1001), 17, 1));
    let job = plan(&files, &limits(), NOW).unwrap();
    assert_eq!(job.reason, Reason::Overlap);
}

#[test]
fn small_days_become_8_or_32_days_once() {
    let live = file(99, level::L0, (9_000, 9_001), 99, 1);
    let mut files: Vec<_> = (0..4)
        .map(|id| file(id + 1, level::DAY, (id as i64 * 120, id as i64 * 120 + 100), id + 1, 10))
        .collect();
    files.push(live);
    let job = plan(&files, &limits(), NOW).unwrap();
    assert_eq!((ids(&job), job.level), (vec![1, 2, 3, 4], level::DAYS_32));
    files = commit(&files, &job);
    assert!(plan(&files, &limits(), NOW).is_none());
}
