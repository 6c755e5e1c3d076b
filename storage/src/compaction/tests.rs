//! Merges on a whole shard: what they write, when writes wait, and what a crash leaves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::executor::block_on;
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy, disk::Faults};

use crate::{
    EngineConfig, EngineLimits, Origin, ScanRequest, Shard, WriteError, WriteRequest,
    sim::{
        model::{Model, Row},
        rows,
        world::{TENANT, test_keys},
    },
};

const HOUR_NS: i64 = 3600 * 1_000_000_000;

struct House {
    disk: SimDisk,
    limits: EngineLimits,
    shard: Option<Shard>,
    model: Model,
    opens: u64,
}

impl House {
    fn new(limits: EngineLimits) -> Self {
        let disk = SimDisk::new();
        let mut this = Self { disk, limits, shard: None, model: Model::default(), opens: 0 };
        this.open();
        this
    }

    fn open(&mut self) {
        self.opens += 1;
        let config = EngineConfig {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(SimClock::at(1000 * HOUR_NS)),
            entropy: Arc::new(SimEntropy::seeded(self.opens)),
            dir: PathBuf::from("/data"),
            keys: test_keys(),
            limits: self.limits.clone(),
        };
        self.shard = Some(block_on(Shard::open(config)).unwrap());
    }

    fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().unwrap()
    }

    fn try_write(&mut self, rows: &[Row]) -> Result<(), WriteError> {
        let request = WriteRequest {
            tenant: TENANT,
            database: "default".into(),
            origin: Origin::Plain,
            tables: rows::batches(rows),
            sender: Default::default(),
        };
        self.shard().write(vec![request]).remove(0)?;
        self.model.apply(rows);
        Ok(())
    }

    fn write(&mut self, rows: &[Row]) {
        self.try_write(rows).unwrap();
        block_on(self.shard().flush()).unwrap();
    }

    fn merge_all(&mut self) {
        while block_on(self.shard().compact_once()).unwrap() {}
    }

    fn files(&mut self, table: &str) -> usize {
        let stats = self.shard().table_stats(TENANT);
        stats.iter().find(|t| t.table == table).map_or(0, |t| t.files)
    }

    fn objects(&self) -> usize {
        self.disk.paths().into_iter().filter(|p| p.starts_with("/data/data")).count()
    }

    fn check(&mut self) {
        let snapshot = self.shard().snapshot(TENANT).unwrap();
        assert_eq!(rows::read(&snapshot, ScanRequest::all), self.model);
    }
}

fn rows_of(table: &'static str, hosts: usize, times: impl Iterator<Item = i64>) -> Vec<Row> {
    times
        .flat_map(|time| {
            (0..hosts).map(move |host| Row {
                table,
                host: format!("h{host}"),
                time,
                a: Some(time as f64 / 7.0 + host as f64),
                b: None,
            })
        })
        .collect()
}

fn limits() -> EngineLimits {
    EngineLimits { merge_files: 2, segment_bytes: 4 << 20, ..EngineLimits::default() }
}

#[test]
fn d2_a_merge_writes_several_files_and_a_long_series_in_pieces_and_keeps_every_row() {
    let mut h = House::new(EngineLimits { merge_file_bytes: 100_000, ..limits() });
    // One series longer than a group, interleaved over both files, and many short ones.
    for odd in [0, 1] {
        let long = (0..70_000).map(|t| 2 * t + odd);
        h.write(&rows_of("cpu", 1, long));
        h.write(&rows_of("cpu", 50, (0..20).map(|t| 1_000_000 + 2 * t + odd)));
    }
    let before = h.files("cpu");
    h.merge_all();
    let merged = h.shard().compactions(TENANT);
    assert!(merged.iter().any(|m| m.outputs > 1 && m.inputs >= 2), "{merged:?}");
    assert!(merged.iter().all(|m| m.rows_out <= m.rows_in && m.bytes_out > 0));
    assert!(h.files("cpu") != before);
    h.check();
    h.shard = None;
    h.open();
    h.check();
}

#[test]
fn d3_a_table_at_its_bound_waits_for_merges_and_no_other_table_does() {
    // Merging waits until the bound is reached: only the number of overlapping files counts.
    let bound = EngineLimits { merge_files: 100, overlap_relief: 6, overlap_max: 6, ..limits() };
    let mut h = House::new(bound);
    h.write(&rows_of("press", 1, 0..2));
    for _ in 0..6 {
        h.write(&rows_of("cpu", 2, 0..5));
    }
    // Looks at the tables, as after every flush, and finds the bound reached.
    let one = rows_of("cpu", 1, 0..1);
    h.try_write(&one).unwrap();
    h.shard().look_at_tables();
    let stats = h.shard().table_stats(TENANT);
    assert_eq!(
        stats.iter().filter(|t| t.slowed).map(|t| t.table.as_str()).collect::<Vec<_>>(),
        ["cpu"]
    );
    let both = [one.clone(), rows_of("press", 1, 0..1)].concat();
    for rows in [&one, &both] {
        let refused = h.try_write(rows).unwrap_err();
        assert!(matches!(refused, WriteError::Busy(_)), "{refused}");
    }
    h.try_write(&rows_of("press", 1, 5..6)).unwrap();
    h.merge_all();
    h.try_write(&one).unwrap();
    assert!(h.shard().table_stats(TENANT).iter().all(|t| !t.slowed && t.overlap < 6));
    h.check();
}

#[test]
fn d1_a_crash_anywhere_in_a_merge_leaves_nothing_behind_and_the_merge_is_done_after_it() {
    for cut in (0..60u64).step_by(3) {
        let mut h = House::new(EngineLimits { merge_file_bytes: 1_000, ..limits() });
        for turn in 0..2 {
            h.write(&rows_of("cpu", 100, (0..15).map(|t| t * 2 + turn)));
        }
        let at = h.disk.ops() + cut;
        h.disk.set_faults(Faults { cut_after: Some(at), ..Faults::default() });
        let done = block_on(h.shard().compact_once()).is_ok();
        h.shard = None;
        h.disk.power_cycle(&SimEntropy::seeded(cut));
        h.disk.set_faults(Faults::default());
        h.open();
        h.check();
        let named = h.files("cpu");
        assert!(h.objects() <= named + 2, "cut {cut}: what was left behind is swept");
        h.merge_all();
        h.check();
        assert!(h.shard().table_stats(TENANT)[0].overlap == 1, "cut {cut} ({done})");
    }
}

#[test]
fn bundles_go_when_their_rows_are_merged_although_they_held_series() {
    let mut h = House::new(limits());
    for turn in 0..6 {
        let mut rows = rows_of("cpu", 3, (0..200).map(|t| t + turn));
        rows.iter_mut().for_each(|r| r.host = format!("{}-{turn}", r.host));
        h.write(&rows);
    }
    h.merge_all();
    let late = Duration::from_secs(10_000);
    block_on(h.shard().sweep(Duration::ZERO, Duration::ZERO)).unwrap();
    let before = h.objects();
    assert!(before >= 6, "series hold {before} objects");
    let moved = block_on(h.shard().relocate_series()).unwrap();
    assert!(moved >= 6, "{moved}");
    assert_eq!(block_on(h.shard().relocate_series()).unwrap(), 0, "moving ends");
    block_on(h.shard().sweep(late, Duration::ZERO)).unwrap();
    assert!(h.objects() <= 3, "{} objects are left", h.objects());
    h.check();
    h.shard = None;
    h.open();
    h.check();
}
