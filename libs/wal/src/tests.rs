//! The log's own suite: crash schedules, failures, damage, the format page, planted bugs.
//! `MILLRACE_SEEDS=n` multiplies the counts; every failure names its seed.

mod commit;
mod crash;
mod damage;
mod format;
mod planted_bugs;
mod world;

/// `default` seeds, times `MILLRACE_SEEDS`.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let times = std::env::var("MILLRACE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    0..default.saturating_mul(times)
}
