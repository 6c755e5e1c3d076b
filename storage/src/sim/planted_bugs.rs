//! A suite that finds nothing proves nothing: each planted bug must be caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_platform::sim::disk::Faults;

use super::{crash, fork, world::World, zombie};
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

fn schedule(seed: u64, planted: Faults) {
    let mut w = World::seeded(seed);
    w.planted = planted;
    crash::random_schedule(&mut w);
}

#[test]
fn d1_every_planted_bug_is_caught() {
    let none = Faults::default();
    caught("sync skipped", 100, |s| schedule(s, Faults { skip_sync: true, ..none }));
    caught("directory sync skipped", 100, |s| schedule(s, Faults { skip_sync_dir: true, ..none }));
    for (what, bug) in [
        ("ack early", Bug::AckEarly),
        ("trim early", Bug::TrimEarly),
        ("double apply", Bug::DoubleApply),
        ("replay skips a record", Bug::ReplaySkipsOne),
        ("merge drops an input", Bug::MergeDropsInput),
    ] {
        caught(what, 300, |s| planted::with(bug, || schedule(s, none)));
    }
    caught("replay error swallowed", 50, |s| {
        planted::with(Bug::ReplayErrorSwallowed, || crash::damaged_log(s));
    });
    caught("epoch check skipped", 100, |s| {
        planted::with(Bug::EpochCheckSkipped, || zombie::schedule(&mut World::seeded(s)));
    });
    caught("checksum ignored", 50, |s| {
        planted::with(Bug::ChecksumIgnored, || fork::swapped_record(s));
    });
}
