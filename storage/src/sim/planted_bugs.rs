//! A suite that finds nothing proves nothing: each planted bug must be caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_platform::sim::disk::Faults;

use super::{crash, fork, machine::Machine, pins, schedule, world::World, zombie};
use crate::planted::{self, Bug};

/// Runs the suite's schedules until one of them fails; the bug must be caught within `seeds`.
fn caught(what: &str, seeds: u64, run: impl Fn(u64)) {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let at = (0..seeds).find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed))).is_err());
    std::panic::set_hook(quiet);
    match at {
        Some(seed) => println!("{what}: caught at seed {seed}"),
        None => panic!("{what}: not caught within {seeds} seeds"),
    }
}

/// A random schedule; the faults stay on whatever happens to the disk.
fn random(seed: u64, planted: Faults) {
    let mut m = Machine::seeded(seed);
    m.planted = planted;
    schedule::run(&mut m);
}

/// The same bug in the schedules of the suite, which must catch it within 1,000 seeds.
fn caught_by_schedules(what: &str, bug: Bug) {
    caught(what, 1000, |s| planted::with(bug, || random(s, Faults::default())));
}

macro_rules! caught_by_schedules {
    ($($name:ident = $bug:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            caught_by_schedules(stringify!($bug), Bug::$bug);
        })*
    };
}

caught_by_schedules!(
    d1_ack_early_is_caught = AckEarly,
    d1_trim_early_is_caught = TrimEarly,
    d2_double_apply_is_caught = DoubleApply,
    d1_replay_skips_one_is_caught = ReplaySkipsOne,
    d1_merge_drops_input_is_caught = MergeDropsInput,
    d1_flush_loses_chunk_is_caught = FlushLosesChunk,
    d1_flush_skips_window_is_caught = FlushSkipsWindow,
    d2_late_file_misplaced_is_caught = LateFileMisplaced,
    d2_watermark_not_stored_is_caught = WatermarkNotStored,
    d1_partial_bundle_is_caught = PartialBundle,
    d2_dedup_takes_older_is_caught = DedupTakesOlder,
    d2_null_fill_dropped_is_caught = NullFillDropped,
    d1_merge_drops_field_is_caught = MergeDropsField,
    d1_series_are_garbage_is_caught = SeriesAreGarbage,
    d1_checkpoint_incomplete_is_caught = CheckpointIncomplete,
    d1_columns_lost_on_replay_is_caught = ColumnsLostOnReplay,
    d2_marks_kept_after_failure_is_caught = MarksKeptAfterFailure,
    d2_hole_taken_is_caught = HoleTaken,
    d1_series_id_shared_is_caught = SeriesIdShared,
    d2_delete_takes_newer_is_caught = DeleteTakesNewer,
    r4_merge_keeps_deleted_is_caught = MergeKeepsDeleted,
    r4_tombstone_ends_early_is_caught = TombstoneEndsEarly,
    r4_tombstones_not_loaded_is_caught = TombstonesNotLoaded,
    r4_delete_not_committed_is_caught = DeleteNotCommitted,
    r4_dropped_table_stays_is_caught = DroppedTableStays,
);

#[test]
fn d1_sync_skipped_is_caught() {
    let planted = Faults { skip_sync: true, ..Faults::default() };
    caught("sync skipped", 1000, |s| random(s, planted));
}

#[test]
fn d1_directory_sync_skipped_is_caught() {
    let planted = Faults { skip_sync_dir: true, ..Faults::default() };
    caught("directory sync skipped", 1000, |s| random(s, planted));
}

#[test]
fn d1_replay_error_swallowed_is_caught() {
    caught("replay error swallowed", 1000, |s| {
        planted::with(Bug::ReplayErrorSwallowed, || crash::damaged_log(s));
    });
}

#[test]
fn d1_epoch_check_skipped_is_caught() {
    caught("epoch check skipped", 1000, |s| {
        planted::with(Bug::EpochCheckSkipped, || zombie::schedule(&mut World::seeded(s)));
    });
}

#[test]
fn d1_pin_ignored_is_caught() {
    caught("pin ignored", 1000, |s| {
        planted::with(Bug::PinIgnored, || pins::held_snapshot(6 + s));
    });
}

#[test]
fn d1_checksum_ignored_is_caught() {
    caught("checksum ignored", 1000, |s| {
        planted::with(Bug::ChecksumIgnored, || fork::swapped_record(s));
    });
}

/// Ids that collide are no bug: the suite holds with them, so what it caught above is the bug.
#[test]
fn d1_series_ids_that_collide_harm_nothing() {
    for seed in 0..200 {
        planted::with(Bug::SeriesIdsFew, || random(seed, Faults::default()));
    }
}
