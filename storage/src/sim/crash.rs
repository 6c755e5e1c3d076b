//! Power cuts at every operation of a reference trace, and random schedules.

use super::{seeds::times as seeds, world::World};

/// Writes, streams, flushes and merges; stops at the first failure.
fn trace(w: &mut World) -> bool {
    for round in 0..3 {
        let rows = w.some_rows(6);
        if !w.write(rows) {
            return false;
        }
        let rows = w.some_rows(4);
        if !w.stream(rows) {
            return false;
        }
        if !w.flush() {
            return false;
        }
        let rows = w.some_rows(3);
        if !w.stream(rows) {
            return false;
        }
        if round > 0 && !w.compact() {
            return false;
        }
    }
    true
}

/// Operations of the trace when nothing fails.
fn length(seed: u64) -> u64 {
    let mut w = World::seeded(seed);
    w.open().unwrap();
    let before = w.disk.ops();
    assert!(trace(&mut w), "the trace runs when nothing fails");
    w.check("after the undisturbed trace");
    w.disk.ops() - before
}

#[test]
fn d1_power_cut_at_every_operation_keeps_acked_rows_once() {
    for seed in 0..seeds(2) {
        let operations = length(seed);
        assert!(operations > 50, "the trace must do real work, it did {operations} operations");
        for cut in 0..operations {
            let mut w = World::seeded(seed);
            w.open().unwrap();
            w.cut_power_after(cut);
            trace(&mut w);
            w.crash();
            w.open().unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: does not start: {e}"));
            w.check(&format!("after cut {cut}"));
            let rows = w.some_rows(3);
            assert!(w.stream(rows), "seed {seed}, cut {cut}: writes go on");
            w.crash();
            w.open().unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: second start: {e}"));
            w.check(&format!("after cut {cut} and a second crash"));
        }
    }
}

#[test]
fn d1_power_cut_during_recovery_is_survived_too() {
    for seed in 10..10 + seeds(3) {
        for cut in 0..40 {
            let mut w = World::seeded(seed);
            w.open().unwrap();
            w.cut_power_after(length(seed) * 2 / 3);
            trace(&mut w);
            w.crash();
            w.cut_power_after(cut);
            let started = w.open().is_ok();
            w.crash();
            w.open().unwrap_or_else(|e| panic!("seed {seed}, cut {cut} ({started}): {e}"));
            w.check(&format!("after a cut at operation {cut} of recovery"));
        }
    }
}

#[test]
fn d2_a_resent_frame_is_acked_and_changes_nothing() {
    let mut w = World::seeded(3);
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows.clone()));
    let before = w.read();
    for reopened in [false, true] {
        if reopened {
            assert!(w.flush());
            w.crash();
            w.open().unwrap();
        }
        let header = w.header(1, 5);
        assert!(w.request(crate::Origin::Stream(header), rows.clone()));
        assert_eq!(w.read(), before);
        let mut other = w.some_rows(8);
        other[..5].clone_from_slice(&rows);
        let header = w.header(1, 8);
        if !reopened {
            // Half known: only rows 6 to 8 are new.
            let tail = other[5..].to_vec();
            assert!(w.request(crate::Origin::Stream(header), other));
            w.model.apply(&tail);
            let seen = w.read();
            assert_eq!(seen, before.with(&tail));
            w.model = seen;
            w.seq = 8;
            break;
        }
    }
    let header = w.header(20, 2);
    let rows = w.some_rows(2);
    assert!(!w.request(crate::Origin::Stream(header), rows), "a hole is refused");
    w.unknown.clear();
    w.check("after a refused hole");
}

/// The trace again, going on after every failure as a server does.
fn stubborn_trace(w: &mut World) {
    for round in 0..3 {
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
        w.flush();
    }
}

#[test]
fn d1_any_failing_operation_and_a_power_cut_later_keep_acked_rows_once() {
    for seed in 30..30 + seeds(1) {
        let mut w = World::seeded(seed);
        w.open().unwrap();
        let before = w.disk.ops();
        stubborn_trace(&mut w);
        let operations = w.disk.ops() - before;
        for op in 1..=operations {
            let mut w = World::seeded(seed);
            w.open().unwrap();
            w.fail_operation(op);
            stubborn_trace(&mut w);
            w.crash();
            w.open().unwrap_or_else(|e| panic!("seed {seed}, operation {op} failed: {e}"));
            w.check(&format!("after operation {op} failed and the power was cut"));
            let rows = w.some_rows(3);
            assert!(w.stream(rows) && w.flush(), "seed {seed}, operation {op}: it goes on");
        }
    }
}

/// Thirty random steps, checked against the model at every restart.
pub fn random_schedule(w: &mut World) {
    let seed = w.seed;
    w.open().unwrap();
    for step in 0..30 {
        match w.dice.below(13) {
            0..=2 => {
                let rows = w.some_rows(1 + w.dice.below(8));
                w.write(rows);
            }
            3..=5 => {
                let rows = w.some_rows(1 + w.dice.below(8));
                w.stream(rows);
            }
            6 => w.resend(),
            7 | 8 => {
                w.flush();
            }
            9 => {
                w.compact();
            }
            10 => w.cut_power_after(w.dice.below(40)),
            _ => {
                w.crash();
                w.open().unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
                w.check(&format!("step {step}"));
            }
        }
    }
    w.crash();
    w.open().unwrap_or_else(|e| panic!("seed {seed}, at the end: {e}"));
    w.check("at the end");
}

#[test]
fn d1_random_schedules_agree_with_the_model() {
    for seed in 100..100 + seeds(60) {
        random_schedule(&mut World::seeded(seed));
    }
}

/// A bit flips in the middle of the log: the start is refused or every row is there.
pub fn damaged_log(seed: u64) {
    let mut w = World::seeded(seed);
    w.open().unwrap();
    for _ in 0..6 {
        let rows = w.some_rows(5);
        assert!(w.stream(rows));
    }
    // A second start and one more write, so that the first segment's end is on record and a flip
    // in it cannot pass for a torn tail.
    w.shard = None;
    w.disk.kill_process();
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows));
    w.shard = None;
    w.disk.kill_process();
    let segment = w.disk.paths().into_iter().find(|p| p.to_string_lossy().contains("/wal/"));
    let segment = segment.expect("there is a log segment");
    let byte = 4096 + w.dice.below(6 * 4096);
    w.disk.flip_bit(&segment, byte, w.dice.below(8) as u8).unwrap();
    if w.open().is_ok() {
        w.check("after a bit flip that the start did not report");
    }
}

#[test]
fn d1_damage_in_the_log_is_reported_and_never_skipped() {
    for seed in 0..seeds(40) {
        damaged_log(seed);
    }
}
