//! Memory against its budget: what is counted goes back to nothing, and a replay flushes on its
//! way where running would have.

use std::sync::Arc;

use futures::executor::block_on;
use millrace_platform::budget::{MemoryBudget, MemoryClass};

use super::world::{World, limits};
use crate::{EngineLimits, Shard};

#[test]
fn rows_are_counted_until_they_are_in_files_and_series_for_as_long_as_they_are_known() {
    let memory = MemoryBudget::new(64 << 20);
    let mut w = World::seeded(60);
    let mut config = w.config();
    config.limits = EngineLimits { memory: Arc::clone(&memory), ..limits() };
    w.shard = Some(block_on(Shard::open(config)).unwrap());
    assert_eq!(memory.held(), 0);
    for _ in 0..5 {
        let rows = w.some_rows(50);
        assert!(w.write(rows));
    }
    let rows = memory.held_by(MemoryClass::Memtable);
    assert!(rows > 250 * 12, "{rows} bytes for 250 rows");
    assert!(memory.held_by(MemoryClass::Series) > 0);
    assert!(w.flush());
    assert_eq!(memory.held_by(MemoryClass::Memtable), 0);
    assert_eq!(memory.held_by(MemoryClass::Flush), 0, "what a flush took is given back");
    assert!(memory.peak() > rows, "a flush holds more than the rows");
    w.shard = None;
    assert_eq!(memory.held(), 0, "a shard that is gone holds nothing");
}

#[test]
fn a_replay_of_more_rows_than_memory_may_hold_flushes_on_its_way() {
    let mut w = World::seeded(61);
    w.open().unwrap();
    for _ in 0..40 {
        let rows = w.some_rows(20);
        assert!(w.stream(rows));
    }
    let whole = w.shard().memtable_rows();
    w.crash();
    let memory = MemoryBudget::new(64 << 20);
    let mut config = w.config();
    let flush_bytes = 4 << 10;
    config.limits = EngineLimits { memory: Arc::clone(&memory), flush_bytes, ..limits() };
    w.shard = Some(block_on(Shard::open(config)).unwrap());
    let report = w.shard().replay;
    assert_eq!((report.applied, report.duplicates), (40, 0));
    assert!(report.flushes >= 2, "{} flushes", report.flushes);
    assert!(w.shard().memtable_rows() < whole / 2);
    // The record that goes over the line is in memory too.
    let held = memory.held_by(MemoryClass::Memtable);
    assert!(held < 2 * flush_bytes, "{held} bytes");
    w.check("after a replay that flushed");
    for _ in 0..2 {
        let rows = w.some_rows(5);
        assert!(w.stream(rows));
        w.crash();
        w.open().unwrap();
        w.check("after a replay that flushed and another crash");
    }
}

#[test]
fn a_power_cut_at_any_operation_of_a_replay_that_flushes_loses_nothing() {
    let history = |w: &mut World| {
        w.open().unwrap();
        for _ in 0..12 {
            let rows = w.some_rows(20);
            assert!(w.stream(rows));
        }
        w.crash();
    };
    let small = |w: &mut World| {
        let mut config = w.config();
        config.limits = EngineLimits { flush_bytes: 2 << 10, ..limits() };
        block_on(Shard::open(config)).map(|shard| w.shard = Some(shard))
    };
    let mut w = World::seeded(62);
    history(&mut w);
    let before = w.disk.ops();
    small(&mut w).unwrap();
    assert!(w.shard().replay.flushes > 0, "the test is about flushes");
    for cut in 0..w.disk.ops() - before {
        let mut w = World::seeded(62);
        history(&mut w);
        w.cut_power_after(cut);
        drop(small(&mut w));
        w.crash();
        small(&mut w).unwrap_or_else(|e| panic!("cut {cut}: {e}"));
        w.check(&format!("after a cut at operation {cut} of a replay"));
    }
}
