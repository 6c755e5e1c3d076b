//! Many small tenants: what a flush costs the disk does not depend on how many there are, a tenant
//! that did nothing has no part in it, and each day's new series are counted through restarts.

use std::{path::PathBuf, sync::Arc};

use futures::executor::block_on;
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy};
use millrace_protocol::{
    batch::{FieldColumn, RefusalCode, SeriesKey, TableBatch},
    ids::{DeviceId, Epoch, SeqNo, TenantId},
    stream::{PutHeader, StreamKey},
    value::{FieldType, FieldValues},
};

use super::world::test_keys;
use crate::{EngineConfig, EngineLimits, Origin, Receipt, Shard, WriteRequest};

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

fn open(disk: &SimDisk, seed: u64, clock: &SimClock, series_per_day: u64) -> Shard {
    let config = EngineConfig {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(clock.clone()),
        entropy: Arc::new(SimEntropy::seeded(seed)),
        dir: PathBuf::from("/data"),
        keys: test_keys(),
        limits: EngineLimits {
            series_per_day,
            checkpoint_every: 1000,
            idle_after: std::time::Duration::ZERO,
            ..EngineLimits::default()
        },
    };
    block_on(Shard::open(config)).expect("the shard opens")
}

fn tenant(n: u128) -> TenantId {
    TenantId((n + 1).to_be_bytes())
}

/// One row at `time` in each of the named series.
fn batch(table: &str, series: impl Iterator<Item = u64>, time: i64) -> TableBatch {
    let mut field = FieldColumn::new("v", FieldType::I64);
    let mut out = TableBatch { table: table.to_owned(), ..TableBatch::default() };
    for (at, n) in (0u32..).zip(series) {
        out.series_keys.push(SeriesKey::from_sorted([("unit", format!("u{n}").as_str())]));
        out.series.push(at);
        out.line.push(at + 1);
        out.time.push(time);
        let FieldValues::I64(values) = &mut field.values else { unreachable!("made above") };
        values.push(1);
        field.present.push(true);
    }
    out.fields.push(field);
    out
}

fn request(tenant: TenantId, tables: Vec<TableBatch>) -> WriteRequest {
    let database = "default".to_owned();
    WriteRequest { tenant, database, origin: Origin::Plain, tables, sender: Default::default() }
}

fn write(shard: &mut Shard, tenant: TenantId, tables: Vec<TableBatch>) -> Receipt {
    shard.write(vec![request(tenant, tables)]).remove(0).expect("the write is taken")
}

/// Many tenants' writes share a sync, as they do when they come at the same time. (The simulated
/// disk copies a whole segment at each.)
fn write_fleet(shard: &mut Shard, tenants: std::ops::Range<u128>, tables: usize, time: i64) {
    let all: Vec<u128> = tenants.collect();
    for some in all.chunks(250) {
        let one = |table| batch(&format!("device_{table}"), 0..2, time);
        let requests = some.iter().map(|n| request(tenant(*n), (0..tables).map(one).collect()));
        for receipt in shard.write(requests.collect()) {
            assert_eq!(receipt.expect("the write is taken").rows(), 2 * tables as u64);
        }
    }
}

/// Writes, syncs and name changes that a flush does.
fn flush_ops(disk: &SimDisk, shard: &mut Shard) -> u64 {
    let before = disk.ops();
    block_on(shard.flush()).expect("the flush is done");
    disk.ops() - before
}

#[test]
fn a_flush_costs_the_disk_the_same_for_one_tenant_and_for_two_thousand() {
    let mut costs = Vec::new();
    for (tenants, tables) in [(1, 1), (1, 20), (50, 20), (2000, 1)] {
        let disk = SimDisk::new();
        let clock = SimClock::at(DAY_NS);
        let mut shard = open(&disk, 1, &clock, 0);
        write_fleet(&mut shard, 0..tenants, tables, 1);
        costs.push(flush_ops(&disk, &mut shard));
        drop(shard);
        // And all of it is found again.
        let shard = open(&disk, 2, &clock, 0);
        let snapshot = shard.snapshot(tenant(tenants - 1)).unwrap();
        let found = &snapshot.databases["default"];
        assert_eq!(found.len(), tables);
        assert!(found.values().all(|t| t.rows_upper_bound() == 2 && t.memtable_rows() == 0));
    }
    // One bundle, one manifest record: each a temporary file, its bytes, a sync and its name.
    assert!(costs.iter().all(|c| *c == costs[0]), "operations per flush: {costs:?}");
    assert!(costs[0] < 30, "operations per flush: {costs:?}");
}

#[test]
fn a_tenant_that_wrote_nothing_has_no_part_in_a_flush() {
    let disk = SimDisk::new();
    let clock = SimClock::at(DAY_NS);
    let mut shard = open(&disk, 1, &clock, 0);
    let written = |disk: &SimDisk, folder: &str| -> usize {
        let own = disk.paths().into_iter().filter(|p| p.starts_with(folder));
        let size = |p: &PathBuf| {
            millrace_platform::disk::read_file(disk, p, 1 << 30).map_or(0, |bytes| bytes.len())
        };
        own.map(|p| size(&p)).sum()
    };
    write_fleet(&mut shard, 0..300, 2, 1);
    block_on(shard.flush()).unwrap();
    let all = written(&disk, "/data/shard/0/m");
    // Only one tenant goes on: the record is its alone.
    write_fleet(&mut shard, 7..8, 2, 2);
    block_on(shard.flush()).unwrap();
    let one = written(&disk, "/data/shard/0/m") - all;
    assert!(one * 50 < all, "{one} bytes for one tenant, {all} for 300");
    drop(shard);
    let shard = open(&disk, 2, &clock, 0);
    for (n, rows) in [(7, 4), (8, 2)] {
        let snapshot = shard.snapshot(tenant(n)).unwrap();
        let tables = &snapshot.databases["default"];
        assert!(tables.values().all(|t| t.rows_upper_bound() == rows), "tenant {n}");
    }
}

#[test]
fn a_tenant_that_was_let_go_is_loaded_by_a_write_a_query_and_a_merge_and_forgets_nothing() {
    let disk = SimDisk::new();
    let clock = SimClock::at(DAY_NS);
    let mut shard = open(&disk, 1, &clock, 0);
    let (acme, other) = (tenant(0), tenant(1));
    let key =
        StreamKey { device: DeviceId([1; 16]), stream: "line".parse().unwrap(), epoch: Epoch(1) };
    let framed = |lo: u64, time| {
        let header = PutHeader { key: key.clone(), seq_lo: SeqNo(lo), seq_hi: SeqNo(lo + 1) };
        let origin = Origin::Stream(header);
        WriteRequest { origin, ..request(acme, vec![batch("t", 0..2, time)]) }
    };
    for round in 0..6u64 {
        // Asleep, its mark is known; awake again, it is what decides.
        assert_eq!(shard.watermark(acme, &key), SeqNo(2 * round));
        assert_eq!(shard.awake(), 0, "round {round}");
        if round > 0 {
            let again = shard.write(vec![framed(2 * round - 1, round as i64)]).remove(0).unwrap();
            assert!(again.duplicate() && again.watermark() == Some(SeqNo(2 * round)));
        }
        let taken = shard.write(vec![framed(2 * round + 1, round as i64 + 1)]).remove(0).unwrap();
        assert_eq!((taken.rows(), taken.duplicate()), (2, false));
        assert_eq!(write(&mut shard, other, vec![batch("t", 5..6, 1)]).rows(), 1);
        assert_eq!(shard.awake(), 2);
        block_on(shard.flush()).unwrap();
        while block_on(shard.compact_once()).unwrap() {}
        let snapshot = shard.snapshot(acme).unwrap();
        let table = &snapshot.databases["default"]["t"];
        assert_eq!((table.rows_upper_bound(), table.series.len()), (2 * round + 2, 2));
        block_on(shard.flush()).unwrap();
    }
    assert!(!shard.compactions(acme).is_empty(), "merges are remembered");
    let writes: u64 = shard.table_stats(acme).iter().map(|t| t.writes.flushed.in_order_rows).sum();
    assert!(writes > 0, "and so is what was written");
    // It has never written: nothing of it is kept, and nothing made.
    assert!(shard.snapshot(tenant(9)).unwrap().databases.is_empty());
}

#[test]
fn a_days_new_series_are_limited_and_counted_through_flushes_and_restarts() {
    let disk = SimDisk::new();
    let clock = SimClock::at(100 * DAY_NS + 1);
    let (acme, time) = (tenant(0), DAY_NS);
    let mut shard = open(&disk, 1, &clock, 100);
    let storm = |from: u64, count: u64| vec![batch("t", from..from + count, time)];
    let receipt = write(&mut shard, acme, storm(0, 60));
    assert_eq!((receipt.rows(), receipt.refused()), (60, 0));
    block_on(shard.flush()).unwrap();
    write(&mut shard, acme, storm(60, 30));
    drop(shard);
    // 60 are in the manifest with their day, 30 in the log.
    disk.kill_process();
    let mut shard = open(&disk, 2, &clock, 100);
    let receipt = write(&mut shard, acme, storm(0, 1000));
    assert_eq!((receipt.rows(), receipt.refused()), (100, 900));
    assert!(receipt.refusals().iter().all(|r| r.code == RefusalCode::Quota));
    assert_eq!(receipt.refusals()[0].line, 101, "series that are known come first and are kept");
    // Another table and another tenant have days of their own.
    assert_eq!(write(&mut shard, acme, vec![batch("u", 0..100, time)]).rows(), 100);
    assert_eq!(write(&mut shard, tenant(1), storm(0, 100)).rows(), 100);
    block_on(shard.flush()).unwrap();
    drop(shard);
    let mut shard = open(&disk, 3, &clock, 100);
    assert_eq!(write(&mut shard, acme, storm(2000, 1)).refused(), 1);
    clock.advance(std::time::Duration::from_secs(24 * 3600));
    let receipt = write(&mut shard, acme, storm(2000, 101));
    assert_eq!((receipt.rows(), receipt.refused()), (100, 1), "a new day");
}

#[test]
fn a_batch_of_only_refused_series_is_refused_in_one_pass() {
    // 200,000 series of one batch, all but one refused: quadratic work would take hours.
    let disk = SimDisk::new();
    let mut shard = open(&disk, 1, &SimClock::at(DAY_NS), 1);
    let receipt = write(&mut shard, tenant(0), vec![batch("t", 0..200_000, 1)]);
    assert_eq!((receipt.rows(), receipt.refused()), (1, 199_999));
    assert_eq!(receipt.refusals().len(), 100);
}
