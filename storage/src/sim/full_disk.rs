//! A disk that is full, may only be read, or fails for a while, and is then cured: nothing that
//! was acknowledged is lost, reads go on, and writes go on without a new process.

use futures::executor::block_on;
use millrace_platform::sim::disk::{Failing, Faults};

use super::world::{TENANT, World};
use crate::{Engine, Origin, Shard, WriteError, WriteRequest, sim::rows};

const ALL: [Failing; 3] = [Failing::Full, Failing::ReadOnly, Failing::Broken];

/// Goes on after every failure, as a server does.
fn stubborn_trace(w: &mut World) {
    for round in 0..2 {
        let rows = w.some_rows(6);
        w.write(rows);
        let rows = w.some_rows(4);
        w.stream(rows);
        w.flush();
        let rows = w.some_rows(3);
        w.stream(rows);
        if round > 0 {
            w.compact();
        }
    }
}

/// What the keeper does: opens the shard again where nothing else mends it.
fn mend(w: &mut World, when: &str) {
    if w.shard().wants_reopening() {
        w.shard = None;
        w.open().unwrap_or_else(|e| panic!("{when}: {e}"));
    }
}

#[test]
fn d1_a_disk_that_fails_from_any_operation_on_and_is_cured_loses_nothing_and_goes_on() {
    let mut w = World::seeded(50);
    w.open().unwrap();
    let before = w.disk.ops();
    stubborn_trace(&mut w);
    let operations = w.disk.ops() - before;
    assert!(operations > 50, "the trace must do real work, it did {operations} operations");
    for how in ALL {
        for op in 1..=operations {
            let when = format!("{how:?} from operation {op}");
            let mut w = World::seeded(50);
            w.open().unwrap();
            let from = w.disk.ops() + op;
            w.disk.set_faults(Faults { fails_from: Some((from, how)), ..Faults::default() });
            stubborn_trace(&mut w);
            // A write that was refused is not shown, whatever became of it on the disk.
            assert_eq!(w.read(), w.model, "{when}: reads go on");
            w.disk.set_faults(Faults::default());
            mend(&mut w, &when);
            w.check(&format!("{when}, cured"));
            // A log segment that failed is given up by the first write after it.
            let rows = w.some_rows(3);
            assert!(w.stream(rows.clone()) || w.stream(rows), "{when}: writes go on");
            if !w.flush() {
                mend(&mut w, &when);
                assert!(w.flush(), "{when}: flushes go on");
            }
            w.check(&format!("{when}, cured and flushed"));
            w.crash();
            w.open().unwrap_or_else(|e| panic!("{when}, then the power failed: {e}"));
            w.check(&format!("{when}, cured, then the power failed"));
        }
    }
}

#[test]
fn d1_a_write_on_a_full_disk_is_told_so() {
    let mut w = World::seeded(51);
    w.open().unwrap();
    let full = Faults { fails_from: Some((0, Failing::Full)), ..Faults::default() };
    w.disk.set_faults(full);
    let request = WriteRequest {
        tenant: TENANT,
        database: "default".into(),
        origin: Origin::Plain,
        tables: rows::batches(&w.some_rows(3)),
        sender: Default::default(),
    };
    for _ in 0..2 {
        let answer = w.shard().write(vec![request.clone()]).remove(0);
        assert!(matches!(answer, Err(WriteError::DiskFull(_))), "{answer:?}");
    }
    w.disk.set_faults(Faults::default());
    w.shard().write(vec![request]).remove(0).expect("space is back");
}

#[test]
fn d1_a_start_on_a_full_disk_reads_and_becomes_the_owner_when_there_is_space() {
    for how in [Failing::Full, Failing::ReadOnly] {
        let mut w = World::seeded(52);
        w.open().unwrap();
        stubborn_trace(&mut w);
        w.crash();
        // The first three writing operations of a start: its claim, and what follows.
        for op in 0..12 {
            let from = w.disk.ops() + op;
            w.disk.set_faults(Faults { fails_from: Some((from, how)), ..Faults::default() });
            let config = w.config();
            let opened = block_on(Shard::open_to_read(config));
            let shard = match opened {
                Ok(shard) => shard,
                // A log that cannot be tidied is refused; what matters is a disk that is full.
                Err(_) if how == Failing::ReadOnly => {
                    w.crash();
                    continue;
                }
                Err(e) => panic!("{how:?} from operation {op}: {e}"),
            };
            let claimed = shard.claimed();
            w.shard = Some(shard);
            w.check(&format!("{how:?} from operation {op} of a start"));
            if !claimed {
                let rows = w.some_rows(2);
                assert!(!w.write(rows), "nobody's shard takes rows");
                let rows = w.shard().memtable_rows();
                assert!(!w.flush() || rows == 0, "nobody's shard commits");
                w.unknown.clear();
            }
            w.disk.set_faults(Faults::default());
            mend(&mut w, "after a start on a full disk");
            assert!(w.shard().claimed());
            let rows = w.some_rows(3);
            assert!(w.stream(rows.clone()) || w.stream(rows));
            assert!(w.flush());
            w.check("after a start on a full disk that was cured");
            w.crash();
        }
    }
}

#[test]
fn r8_an_engine_whose_sync_failed_opens_its_shard_again_by_itself() {
    let mut w = World::seeded(53);
    let engine = block_on(Engine::open(w.config())).unwrap();
    let request = |w: &World| WriteRequest {
        tenant: TENANT,
        database: "default".into(),
        origin: Origin::Plain,
        tables: rows::batches(&w.some_rows(3)),
        sender: Default::default(),
    };
    block_on(engine.write(request(&w))).unwrap();
    let lsn = engine.stats().lsn;
    for how in ALL {
        w.disk.set_faults(Faults { fails_from: Some((0, how)), ..Faults::default() });
        assert!(block_on(engine.flush()).is_err(), "{how:?}");
        assert!(block_on(engine.write(request(&w))).is_err(), "{how:?}");
        assert!(engine.snapshot(TENANT).unwrap().lsn >= lsn, "{how:?}: reads go on");
        w.disk.set_faults(Faults::default());
        // The first may find the shard as the fault left it, the second finds it open.
        let flushed = (0..3).any(|_| block_on(engine.flush()).is_ok());
        assert!(flushed, "{how:?}: flushes go on");
        let written = (0..2).any(|_| block_on(engine.write(request(&w))).is_ok());
        assert!(written, "{how:?}: writes go on");
        assert!(engine.snapshot(TENANT).unwrap().lsn > lsn);
    }
    engine.close();
}
