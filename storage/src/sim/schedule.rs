//! Random schedules of everything that may happen, each checked after every step.
//!
//! Owns: which steps follow each other, and the tests that run them: 10,000 schedules in every
//! run of the suite, in parts that run beside each other. A failure prints its seed; the same
//! seed is the same schedule, operation by operation.

use super::{
    machine::{Machine, Step, UNKNOWN_MAX},
    seeds,
};

/// Schedules that every run of the suite takes.
const SCHEDULES: u64 = 10_000;
/// Tests that they are split into.
const PARTS: u64 = 8;
/// Steps of one schedule.
const STEPS: usize = 16;

/// The next step, by the seed.
fn next(m: &Machine) -> Step {
    let below = |n| m.dice.below(n);
    if m.dark() || m.reference.unsettled() >= UNKNOWN_MAX {
        return Step::PowerCut;
    }
    if matches!(m.trace.last(), Some(Step::Full { .. })) {
        return Step::Frames { devices: 1 + below(3) };
    }
    if m.trace.iter().rev().nth(1).is_some_and(|s| matches!(s, Step::Full { .. })) {
        return if below(2) == 0 { Step::Flush } else { Step::Write { clients: 2 } };
    }
    if m.trace.iter().rev().nth(2).is_some_and(|s| matches!(s, Step::Full { .. })) {
        return Step::Room;
    }
    if m.zombie.is_some() && below(3) == 0 {
        return Step::Wake;
    }
    // What a merge left is swept soon, while queries still read it.
    if matches!(m.trace.last(), Some(Step::Compact)) && below(2) == 0 {
        return Step::Sweep { grace: below(4) == 0 };
    }
    match below(68) {
        0..=9 => Step::Write { clients: 1 + below(2) },
        10..=21 => Step::Frames { devices: 1 + below(2) },
        22..=24 => Step::Resend { more: below(2) == 0 },
        25 => Step::Hole,
        26..=34 => Step::Flush,
        35..=40 => Step::Compact,
        41 => Step::Sweep { grace: below(2) == 0 },
        42..=44 => Step::Hold,
        45 => Step::Wait { minutes: [1, 61, 60 * 24 * 30][below(3) as usize] },
        46 if below(2) == 0 => Step::Release,
        46 => Step::Jump { hours: [-2, 0, 24, 24 * 365 * 10][below(4) as usize] },
        47..=49 => Step::Cut { after: below(40) },
        50..=52 => Step::Fail { nth: 1 + below(20) },
        53 => Step::Full { left: below(60 << 10) },
        54..=56 => Step::PowerCut,
        57..=59 => Step::Kill,
        60 => Step::CutRecovery { after: below(40) },
        61 if !m.hurt && m.zombie.is_none() => Step::Takeover,
        64..=66 => Step::Delete,
        67 => Step::DropTable,
        _ => Step::Frames { devices: 1 },
    }
}

/// How much has to be looked at after a step; `None` if nothing can have changed.
fn looks_at_all(step: Step) -> Option<bool> {
    match step {
        Step::Flush
        | Step::Compact
        | Step::Sweep { .. }
        | Step::Wake
        | Step::Delete
        | Step::DropTable => Some(true),
        Step::Write { .. }
        | Step::Frames { .. }
        | Step::Resend { .. }
        | Step::Room
        | Step::Hole => Some(false),
        // Starts compare everything themselves; the others touch nothing.
        _ => None,
    }
}

/// Runs a schedule on a machine that has not started.
pub fn run(m: &mut Machine) {
    m.open();
    for _ in 0..STEPS {
        let step = next(m);
        m.step(step);
        if m.dark() {
            continue;
        }
        if let Some(everything) = looks_at_all(step) {
            m.check(everything);
        }
        if matches!(step, Step::Sweep { .. } | Step::Compact) {
            m.check_held();
        }
    }
    m.step(Step::PowerCut);
}

/// Everything that happened, in one number: the steps, each operation of the disk, what is there.
pub fn digest(m: &Machine) -> u64 {
    let mut text = format!("{:?}", m.trace);
    for op in m.disk.trace() {
        text += &format!("{op:?}");
    }
    text += &format!("{:?}", m.reference.now);
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

fn part(part: u64) {
    let seeds = seeds::part(SCHEDULES, part, PARTS);
    println!("seeds {seeds:?}");
    let mut steps = 0;
    for seed in seeds.clone() {
        let mut m = Machine::seeded(seed);
        seeds::announced(seed, || run(&mut m));
        steps += m.trace.len();
    }
    println!("seeds {seeds:?}: {steps} steps, 0 lost, 0 doubled, 0 wrong values");
}

macro_rules! parts {
    ($($name:ident = $part:literal),*) => {
        $(#[test]
        fn $name() {
            part($part);
        })*
    };
}

parts!(
    part_0_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 0,
    part_1_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 1,
    part_2_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 2,
    part_3_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 3,
    part_4_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 4,
    part_5_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 5,
    part_6_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 6,
    part_7_d1_d2_no_schedule_loses_doubles_or_changes_a_row = 7
);

#[test]
fn one_seed_is_one_schedule_operation_by_operation() {
    let mut digests = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let digest = || {
            let mut m = Machine::seeded(seed);
            seeds::announced(seed, || run(&mut m));
            digest(&m)
        };
        let first = digest();
        assert_eq!(first, digest(), "seed {seed}");
        digests.insert(first);
    }
    assert_eq!(digests.len(), 100, "seeds differ from each other");
}

#[test]
fn a_failure_names_the_command_that_replays_it() {
    let command = seeds::replay_command(17);
    assert!(command.starts_with("MILLRACE_SEED=17 cargo nextest run -p millrace-storage "));
    assert!(command.ends_with("sim::schedule::part_0"), "the name of a test above: {command}");
}

#[test]
fn every_kind_of_step_happens_often() {
    let mut kinds = std::collections::BTreeMap::new();
    for seed in 0..200 {
        let mut m = Machine::seeded(seed);
        seeds::announced(seed, || run(&mut m));
        for step in &m.trace {
            let name = format!("{step:?}");
            let name = name.split(' ').next().unwrap_or_default().to_owned();
            *kinds.entry(name).or_insert(0u32) += 1;
        }
    }
    println!("{kinds:?}");
    assert_eq!(kinds.len(), 22, "{kinds:?}");
    assert!(kinds.values().all(|n| *n >= 5), "{kinds:?}");
}
