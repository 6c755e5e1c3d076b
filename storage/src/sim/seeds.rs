//! Which seeds a randomised test runs.
//!
//! Owns: the environment's say. `MILLRACE_SEEDS=n` multiplies the number of seeds of every
//! simulated test of the workspace; `MILLRACE_SEED=s` runs the one schedule `s` of
//! `sim::schedule`, to replay what a failure printed.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// The one seed to replay, if any.
pub fn replayed() -> Option<u64> {
    std::env::var("MILLRACE_SEED").ok().and_then(|s| s.parse().ok())
}

/// `count` seeds, times `MILLRACE_SEEDS`.
pub fn times(count: u64) -> u64 {
    let times = std::env::var("MILLRACE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    count.saturating_mul(times)
}

/// Part `part` of `parts` of `count` seeds (times `MILLRACE_SEEDS`), or the one to replay.
pub fn part(count: u64, part: u64, parts: u64) -> Range<u64> {
    if let Some(seed) = replayed() {
        // Every part would replay it; one is enough.
        return if part == 0 { seed..seed + 1 } else { 0..0 };
    }
    let share = times(count).div_ceil(parts);
    part * share..(part + 1) * share
}

/// Runs `schedule`; a failure says how to replay it.
pub fn announced<T>(seed: u64, schedule: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(schedule)).unwrap_or_else(|failure| {
        println!("{}", replay_command(seed));
        resume_unwind(failure)
    })
}

/// The command that runs one seed again.
pub fn replay_command(seed: u64) -> String {
    format!("MILLRACE_SEED={seed} cargo nextest run -p millrace-storage sim::schedule::part_0")
}
