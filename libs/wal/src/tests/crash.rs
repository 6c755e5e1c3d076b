//! Power cuts, failing operations and full disks, at every operation of a reference trace.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use millrace_platform::sim::{SimDisk, SimEntropy, disk::Faults};

use super::{seeds, world::World};
use crate::{WalError, planted};

/// Operations that the trace does when nothing fails.
pub(super) fn try_length(seed: u64) -> Result<u64, String> {
    let mut w = World::seeded(seed);
    w.open()?;
    let before = w.disk.ops();
    w.trace(false)?;
    w.check_live()?;
    Ok(w.disk.ops() - before)
}

fn length(seed: u64) -> u64 {
    try_length(seed).unwrap_or_else(|e| panic!("seed {seed}, nothing fails: {e}"))
}

fn goes_on(w: &mut World) -> Result<(), String> {
    for _ in 0..2 {
        let lsn = w.append().map_err(|e| e.to_string())?;
        w.commit(lsn).map_err(|e| e.to_string())?;
    }
    w.check_live()
}

/// The trace with the power failing after `cut` operations, and a second crash after that.
pub(super) fn power_cut(seed: u64, cut: u64, faults: Faults) -> Result<World, String> {
    let mut w = World::seeded(seed);
    w.open()?;
    let at = w.disk.ops() + cut;
    w.disk.set_faults(Faults { cut_after: Some(at), ..faults });
    w.trace(false)?;
    w.power_cut();
    w.disk.set_faults(faults);
    w.open()?;
    goes_on(&mut w)?;
    w.power_cut();
    w.open()?;
    w.note_sealing()?;
    Ok(w)
}

#[test]
fn d1_power_cut_at_every_operation_keeps_acked_frames_once() {
    let mut frames = 0;
    for seed in seeds(12) {
        let operations = length(seed);
        assert!(operations > 50, "seed {seed}: the trace does only {operations} operations");
        for cut in 0..=operations {
            match power_cut(seed, cut, Faults::default()) {
                Ok(w) => frames += w.frames_sealed,
                Err(e) => panic!("seed {seed}, cut after {cut} of {operations}: {e}"),
            }
        }
    }
    println!("sealed {frames} frames across crashes, no (key, nonce) twice");
}

#[test]
fn d1_power_cut_during_a_restart_is_survived_too() {
    for seed in seeds(10) {
        let operations = length(seed);
        for cut in 0..30 {
            let run = || -> Result<(), String> {
                let mut w = World::seeded(seed);
                w.open()?;
                w.disk.set_faults(Faults {
                    cut_after: Some(w.disk.ops() + operations * (2 + seed % 5) / 7),
                    ..Faults::default()
                });
                w.trace(false)?;
                w.power_cut();
                w.disk.set_faults(Faults {
                    cut_after: Some(w.disk.ops() + cut),
                    ..Faults::default()
                });
                if w.start()?.is_ok() {
                    let _power_may_be_off = goes_on(&mut w);
                }
                w.power_cut();
                w.open()?;
                goes_on(&mut w)?;
                w.note_sealing()
            };
            run().unwrap_or_else(|e| panic!("seed {seed}, cut after {cut} of the restart: {e}"));
        }
    }
}

#[test]
fn d1_a_process_that_dies_after_a_failed_sync_leaves_nothing_that_a_later_power_cut_takes() {
    for seed in seeds(6) {
        let operations = length(seed);
        for op in 1..=operations {
            process_dies(seed, op).unwrap_or_else(|e| panic!("seed {seed}, operation {op}: {e}"));
        }
    }
}

/// Operation `op` fails, the process dies at once, a new one starts on what the page cache shows,
/// and then the power fails.
pub(super) fn process_dies(seed: u64, op: u64) -> Result<(), String> {
    let mut w = World::seeded(seed);
    w.open()?;
    w.disk.set_faults(Faults { fail_op: Some(w.disk.ops() + op), ..Faults::default() });
    w.trace(false)?;
    w.kill();
    w.open()?;
    w.power_cut();
    w.open()?;
    goes_on(&mut w)?;
    w.note_sealing()
}

/// The trace with operation `op` failing, going on after it; then a crash of either kind.
pub(super) fn failing_operation(seed: u64, op: u64) -> Result<(), String> {
    let mut w = World::seeded(seed);
    w.open()?;
    w.disk.set_faults(Faults { fail_op: Some(w.disk.ops() + op), ..Faults::default() });
    w.trace(true)?;
    w.check_live()?;
    goes_on(&mut w)?;
    if op.is_multiple_of(2) {
        w.power_cut();
    } else {
        w.kill();
    }
    w.open()?;
    goes_on(&mut w)?;
    w.power_cut();
    w.open()?;
    w.note_sealing()
}

#[test]
fn d1_every_operation_may_fail_once_and_the_log_goes_on_without_a_restart() {
    for seed in seeds(12) {
        for op in 1..=length(seed) {
            failing_operation(seed, op)
                .unwrap_or_else(|e| panic!("seed {seed}, operation {op}: {e}"));
        }
    }
}

#[test]
fn d1_frames_of_a_failed_sync_are_refused_and_their_numbers_never_used_again() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    let first = w.append().unwrap();
    w.commit(first).unwrap();
    let (second, third) = (w.append().unwrap(), w.append().unwrap());
    // The next operations are the write and the sync of the batch.
    w.disk.set_faults(Faults { fail_op: Some(w.disk.ops() + 2), ..Faults::default() });
    for lsn in [third, second, third] {
        match w.commit(lsn) {
            Err(WalError::Poisoned { segment: 1, lsn: said, .. }) => assert_eq!(said, lsn),
            other => panic!("{other:?}"),
        }
    }
    let fourth = w.append().unwrap();
    assert!(fourth > third, "a number of a refused frame may still be in somebody's hands");
    w.commit(fourth).unwrap();
    assert!(matches!(w.commit(second), Err(WalError::Poisoned { .. })));
    let syncs_of_first = |d: &SimDisk| {
        d.trace().iter().filter(|op| matches!(op, millrace_platform::sim::disk::Op::Sync(p) if p.to_string_lossy().contains("0001.wal"))).count()
    };
    let before = syncs_of_first(&w.disk);
    w.kill();
    w.open().unwrap();
    let lsns: Vec<u64> = w.acked.keys().copied().collect();
    assert_eq!(lsns, [first, fourth]);
    assert_eq!(
        syncs_of_first(&w.disk),
        before,
        "a segment whose sync failed is never synced again"
    );
}

#[test]
fn d1_a_failure_inside_an_append_is_told_to_whoever_commits_the_group() {
    let mut w = World::seeded(2);
    w.open().unwrap();
    let wal = w.wal.as_ref().unwrap();
    // The third does not fit into the segment, so its append syncs the two before, which fails.
    let payload = vec![9; 9000];
    let first = wal.append(super::world::owner(1), &payload).unwrap();
    w.disk.set_faults(Faults { fail_op: Some(w.disk.ops() + 2), ..Faults::default() });
    let second = wal.append(super::world::owner(1), &payload).unwrap();
    let third = wal.append(super::world::owner(1), &payload).unwrap();
    match wal.commit(third) {
        Err(WalError::Poisoned { lsn, .. }) => assert!((first..=second).contains(&lsn)),
        other => panic!("{other:?}"),
    }
    assert!(wal.commit(third).is_ok(), "told once");
    assert!(wal.commit_group(third, third).is_ok());
    assert!(matches!(wal.commit_group(first, third), Err(WalError::Poisoned { .. })));
    assert!(matches!(wal.commit(first), Err(WalError::Poisoned { .. })));
}

#[test]
fn d1_a_full_disk_refuses_appends_and_they_work_again_without_a_restart() {
    for seed in seeds(6) {
        let mut w = World::seeded(seed);
        w.open().unwrap();
        w.disk.set_faults(Faults { capacity: Some(50 << 10), ..Faults::default() });
        let refused = loop {
            match w.append() {
                Ok(lsn) => w.commit(lsn).unwrap(),
                Err(e) => break e,
            }
            assert!(w.acked.len() < 500, "the disk never filled");
        };
        assert!(refused.is_disk_full(), "{refused}");
        assert!(matches!(w.append(), Err(WalError::DiskFull { needed, .. }) if needed == 24 << 10));
        w.check_live().unwrap();
        // A start on a full disk reads, trims, and appends once there is room.
        w.wal = None;
        w.open().unwrap();
        assert!(w.append().is_err_and(|e| e.is_disk_full()));
        w.floor = w.wal.as_ref().unwrap().next_lsn();
        w.acked.clear();
        let report = w.wal.as_ref().unwrap().trim_below(w.floor).unwrap();
        assert_eq!(report.segments, 1, "the newest stays, there is no other to go on in");
        goes_on(&mut w).unwrap();
        w.power_cut();
        w.open().unwrap();
        goes_on(&mut w).unwrap();
    }
}

#[test]
fn d1_an_end_that_cannot_be_carried_over_for_want_of_room_is_synced_where_it_is() {
    let mut w = World::seeded(3);
    w.open().unwrap();
    let lsn = w.append().unwrap();
    w.commit(lsn).unwrap();
    w.kill();
    w.disk.set_faults(Faults { capacity: Some(30 << 10), ..Faults::default() });
    w.open().unwrap();
    assert!(w.acked.contains_key(&lsn));
    w.power_cut();
    w.open().unwrap();
    assert!(w.acked.contains_key(&lsn));
}

#[test]
fn starts_without_appends_do_not_pile_segments_up() {
    let mut w = World::seeded(4);
    for _ in 0..20 {
        w.open().unwrap();
    }
    assert_eq!(w.segments().len(), 1);
    let lsn = w.append().unwrap();
    w.commit(lsn).unwrap();
    for _ in 0..20 {
        w.kill();
        w.open().unwrap();
    }
    assert!(w.segments().len() <= 2, "{:?}", w.segments());
    assert!(w.acked.contains_key(&lsn));
}

#[test]
fn a_half_made_segment_is_swept() {
    // Power cuts leave `.tmp` files at many points; no start leaves one.
    for cut in 0..12 {
        let w = power_cut(5, cut, Faults::default()).unwrap();
        assert!(w.disk.paths().iter().all(|p| !p.to_string_lossy().ends_with(".tmp")));
    }
}

#[test]
fn d1_random_schedules_of_failures_and_crashes() {
    for seed in seeds(150) {
        let dice = SimEntropy::seeded(seed ^ 0x51ed);
        let run = || -> Result<(), String> {
            let mut w = World::seeded(seed);
            w.open()?;
            for _ in 0..4 {
                w.disk.set_faults(Faults {
                    fail_op: Some(w.disk.ops() + 1 + dice.below(120)),
                    ..Faults::default()
                });
                w.trace(true)?;
                match dice.below(3) {
                    0 => w.power_cut(),
                    1 => w.kill(),
                    _ => {}
                }
                w.disk.set_faults(Faults::default());
                w.open()?;
                w.check_live()?;
            }
            w.note_sealing()
        };
        run().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn the_hooks_are_off_unless_a_test_plants_a_bug() {
    assert!(!planted::planted(planted::Bug::AckEarly));
}
