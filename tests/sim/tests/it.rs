//! The crash suite of the log, and the bugs that it must catch.
#![allow(missing_docs, clippy::print_stdout, reason = "tests; seeds are printed to be replayed")]

use millrace_sim::{Bug, LogAndStore, World, schedule, schedule::Broken, seeds};

type Schedule = fn(u64, Option<Bug>) -> Result<u64, Broken>;

const CUTS: Schedule = schedule::power_cuts::<LogAndStore>;
const FAILURES: Schedule = schedule::failing_operations::<LogAndStore>;
const STARTS: Schedule = schedule::power_cuts_of_starts::<LogAndStore>;
const FULL: Schedule = schedule::full_disks::<LogAndStore>;
const FLIPS: Schedule = |seed, bug| schedule::bit_flips::<LogAndStore>(seed, bug, ".wal", 250);

fn holds(name: &str, count: u64, schedule: Schedule) {
    let seeds = seeds(count);
    let mut runs = 0;
    for seed in seeds.clone() {
        runs += schedule(seed, None).unwrap_or_else(|broken| panic!("{name}: {broken}"));
    }
    println!("{name}: {runs} runs, seeds {seeds:?}, 0 lost, 0 doubled, 0 phantom");
}

#[test]
fn d1_power_cuts_at_every_operation_lose_and_double_nothing() {
    holds("power cuts", 8, CUTS);
}

#[test]
fn d1_every_operation_may_fail_once() {
    holds("failing operations", 8, FAILURES);
}

#[test]
fn d1_power_cuts_during_a_start_lose_nothing() {
    holds("power cuts of starts", 10, STARTS);
}

#[test]
fn d1_a_full_disk_loses_nothing_and_recovers_without_a_restart() {
    holds("full disks", 4, FULL);
}

#[test]
fn d1_a_flipped_bit_of_the_log_is_refused_or_harmless() {
    holds("bit flips", 4, FLIPS);
}

#[test]
fn one_seed_is_one_history() {
    for seed in seeds(4) {
        let history = || {
            let mut w = World::<LogAndStore>::seeded(seed);
            w.start().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            for round in 0..20 {
                w.store(1 + round % 3);
                if round % 6 == 5 {
                    w.flush();
                }
            }
            w.power_comes_back();
            w.start().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            format!("{:?} {}", w.stage.sim.trace(), w.acked())
        };
        assert!(history() == history(), "seed {seed} replays differently");
    }
}

/// The schedules that a bug shows in, and the seeds it may take.
fn schedules_of(bug: Bug) -> (&'static [Schedule], u64) {
    match bug {
        Bug::SyncSkipped
        | Bug::DirectorySyncSkipped
        | Bug::AckEarly
        | Bug::TrimEarly
        | Bug::FloorEarly
        | Bug::DoubleApply
        | Bug::ReplaySkipsOne
        | Bug::NonceReused => (&[CUTS], 4),
        Bug::FailedSyncBelieved | Bug::PoisonedIsAcked => (&[FAILURES], 4),
        Bug::ChecksumIgnored | Bug::ReplayErrorSwallowed => (&[FLIPS], 4),
    }
}

#[test]
fn every_planted_bug_is_caught() {
    for bug in Bug::ALL {
        let (schedules, bound) = schedules_of(bug);
        let found = seeds(bound)
            .flat_map(|seed| schedules.iter().map(move |schedule| (seed, schedule)))
            .find_map(|(seed, schedule)| schedule(seed, Some(bug)).err());
        match found {
            Some(broken) => println!("{bug:?}: caught: {broken}"),
            None => panic!("{bug:?} is not caught within {bound} seeds"),
        }
    }
}
