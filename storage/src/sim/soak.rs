//! Schedules for as long as one likes: `cargo xtask soak --minutes 120`.
//!
//! Owns: threads, progress, the sum at the end. Never part of a normal run: the test is ignored.
//! `MILLRACE_SOAK_MINUTES` (1 without it), `MILLRACE_SOAK_JOBS` (all cores) and
//! `MILLRACE_SOAK_FROM` (the first seed, behind those of the suite) say how much.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_platform::clock::{Clock, SystemClock};

use super::{machine::Machine, schedule, seeds};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "runs as long as it is told to: cargo xtask soak"]
fn d1_d2_no_schedule_of_a_long_run_loses_doubles_or_changes_a_row() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let jobs = setting("MILLRACE_SOAK_JOBS", cores).max(1);
    let first = setting("MILLRACE_SOAK_FROM", 1_000_000);
    let time = Duration::from_secs(60 * setting("MILLRACE_SOAK_MINUTES", 1));
    let clock = SystemClock::new();
    let (next, steps) = (AtomicU64::new(first), AtomicU64::new(0));
    let (shown, failed) = (Mutex::new(Duration::ZERO), Mutex::new(Vec::new()));
    let report = || {
        let (done, steps) = (next.load(Ordering::Relaxed) - first, steps.load(Ordering::Relaxed));
        let bad = failed.lock().unwrap().len();
        let minutes = clock.monotonic().as_secs_f64() / 60.0;
        println!("{minutes:.1} min: {done} schedules, {steps} steps, {bad} failed");
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while clock.monotonic() < time {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let run = || {
                        let mut m = Machine::seeded(seed);
                        schedule::run(&mut m);
                        m.trace.len() as u64
                    };
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                    match done {
                        Ok(n) => drop(steps.fetch_add(n, Ordering::Relaxed)),
                        Err(_) => {
                            println!("{}", seeds::replay_command(seed));
                            failed.lock().unwrap().push(seed);
                        }
                    }
                    let now = clock.monotonic();
                    let mut last = shown.lock().unwrap();
                    if now.saturating_sub(*last) > Duration::from_secs(10) {
                        *last = now;
                        report();
                    }
                }
            });
        }
    });
    report();
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "seeds {failed:?} fail; each is replayed by the command above");
}
