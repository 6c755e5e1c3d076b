//! Power cuts and failing operations at every disk operation of reference histories.

use millrace_platform::sim::{SimEntropy, disk::Faults};

use super::world::World;

/// Steps of a history.
const STEPS: u64 = 60;

/// Plays a history; at disk operation `n` the fault happens.
pub(super) fn play(seed: u64, faults: Faults) -> World {
    let mut world = World::seeded(seed);
    // What the disk keeps is drawn apart, so that every cut of one history sees the same history.
    let cuts = faults.cut_after.is_some();
    world.disk.set_faults(faults);
    let mut cut = false;
    for _ in 0..STEPS {
        // A kill in the history ends the fault: the machine of a killed process is fine.
        if !cut {
            world.disk.set_faults(faults);
        }
        world.step();
        if cuts && !cut && world.disk.ops() >= faults.cut_after.unwrap_or(0) {
            cut = true;
            world.disk.set_faults(Faults::default());
            world.power_cut();
        }
    }
    world.disk.set_faults(Faults::default());
    world.kill();
    world.drain();
    world
}

/// All findings of one history cut at every `stride`-th operation.
pub(super) fn findings(seed: u64, stride: u64) -> Vec<String> {
    let ops = play(seed, Faults::default()).disk.ops();
    let mut wrong = Vec::new();
    let start = 1 + SimEntropy::seeded(seed).below(stride);
    for n in (start..=ops).step_by(stride as usize) {
        for fault in [
            Faults { cut_after: Some(n), ..Faults::default() },
            Faults { fail_op: Some(n), ..Faults::default() },
        ] {
            let found = play(seed, fault).books();
            wrong.extend(found.into_iter().map(|f| format!("seed {seed}, operation {n}: {f}")));
        }
    }
    wrong
}

#[test]
fn e9_d2_a_history_without_faults_delivers_every_row_once_and_empties_the_queue() {
    for seed in 0..20 {
        let world = play(seed, Faults::default());
        let wrong = world.books();
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
        let segments = world.files().iter().filter(|p| p.extension().is_some()).count();
        assert!(segments <= 3, "seed {seed}: {segments} segments are kept");
        let rows: usize = world.server.ledger.values().map(Vec::len).sum();
        assert!(rows > 100, "seed {seed}: the history is too short");
    }
}

#[test]
fn e9_d2_a_power_cut_or_a_failing_operation_anywhere_loses_and_doubles_nothing() {
    for seed in 0..6 {
        let wrong = findings(seed, 2);
        assert!(
            wrong.is_empty(),
            "{} findings:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(20)].join("\n")
        );
    }
}

#[test]
fn e9_cuts_upon_cuts_lose_and_double_nothing() {
    for seed in 100..160 {
        let mut world = World::seeded(seed);
        for _ in 0..6 {
            let cut_after = Some(world.disk.ops() + world.dice.below(60));
            for _ in 0..12 {
                world.disk.set_faults(Faults { cut_after, ..Faults::default() });
                world.step();
            }
            world.disk.set_faults(Faults::default());
            world.power_cut();
        }
        world.drain();
        let wrong = world.books();
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    }
}
