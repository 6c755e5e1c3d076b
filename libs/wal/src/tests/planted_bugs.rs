//! Bugs on purpose: the suite is worth what it catches.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use millrace_platform::sim::disk::Faults;

use super::{
    crash::{failing_operation, power_cut, process_dies, try_length},
    damage::{flips, undamaged},
    seeds,
    world::{RecordingKeys, World},
};
use crate::planted::{Bug, with};

/// Runs `round` for seeds until one reports a violation; says how many it took.
fn caught(name: &str, bound: u64, mut round: impl FnMut(u64) -> Result<(), String>) {
    for seed in seeds(bound) {
        if let Err(found) = round(seed) {
            println!("{name}: caught with seed {seed}: {found}");
            return;
        }
    }
    panic!("{name}: not caught within {bound} seeds");
}

fn every_cut(seed: u64, faults: Faults) -> Result<(), String> {
    (0..=try_length(seed)?).try_for_each(|cut| power_cut(seed, cut, faults).map(|_| ()))
}

#[test]
fn a_skipped_sync_is_caught() {
    caught("sync skipped", 3, |seed| {
        every_cut(seed, Faults { skip_sync: true, ..Faults::default() })
    });
}

#[test]
fn a_skipped_directory_sync_is_caught() {
    caught("directory sync skipped", 3, |seed| {
        every_cut(seed, Faults { skip_sync_dir: true, ..Faults::default() })
    });
}

#[test]
fn an_ack_before_the_sync_is_caught() {
    caught("ack early", 3, |seed| with(Bug::AckEarly, || every_cut(seed, Faults::default())));
}

#[test]
fn an_early_trim_is_caught() {
    caught("trim early", 3, |seed| with(Bug::TrimEarly, || every_cut(seed, Faults::default())));
}

#[test]
fn a_failed_sync_that_is_believed_is_caught() {
    caught("failed sync believed", 3, |seed| {
        with(Bug::SyncRetried, || {
            (1..=try_length(seed)?).try_for_each(|op| failing_operation(seed, op))
        })
    });
}

#[test]
fn an_end_that_is_taken_for_durable_is_caught() {
    caught("tail trusted", 3, |seed| {
        with(Bug::TailTrusted, || (1..=try_length(seed)?).try_for_each(|op| process_dies(seed, op)))
    });
}

#[test]
fn an_ignored_checksum_is_caught() {
    caught("checksum ignored", 3, |seed| with(Bug::ChecksumIgnored, || flips(seed, 400)));
}

#[test]
fn a_swallowed_replay_error_is_caught() {
    caught("replay error swallowed", 3, |seed| {
        with(Bug::ReplayErrorSwallowed, || flips(seed, 400))
    });
}

#[test]
fn a_key_that_does_not_depend_on_the_segment_is_caught() {
    caught("(key, nonce) reused", 1, |seed| {
        let mut w = World::seeded(seed);
        w.keys = Arc::new(RecordingKeys { one_key_for_all: true, ..RecordingKeys::default() });
        w.open()?;
        w.trace(false)?;
        w.note_sealing()
    });
}

#[test]
fn without_a_bug_the_same_rounds_find_nothing() {
    for seed in seeds(1) {
        every_cut(seed, Faults::default()).unwrap();
        flips(seed, 400).unwrap();
    }
    undamaged(0).unwrap();
}
