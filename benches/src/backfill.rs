//! Lateness: how long after its time a row arrives.
//!
//! Owns: which rows are late and by how much. A machine that was cut off comes back and sends an
//! episode of its history in order while the others send what is happening now, as a forwarder
//! with a full queue does.
//! Invariant: a machine never sends two rows of one time. Late episodes lie a whole number of
//! periods in the past, and a period is no shorter than the run.

use crate::random::Random;

/// The shortest delay of a late row: hours.
const PERIOD_S_MIN: u64 = 2 * 3600;
/// The longest: weeks.
const BEHIND_S_MAX: u64 = 28 * 24 * 3600;

/// Who is late, when, by how much.
#[derive(Debug, Clone, Copy)]
pub struct Lateness {
    seed: u64,
    percent: f64,
    period_s: u64,
    episode_s: u64,
}

impl Lateness {
    /// `percent` of all rows of a run of `seconds` are late.
    pub fn new(seed: u64, percent: f64, seconds: u64) -> Self {
        let period_s = seconds.max(PERIOD_S_MIN).next_multiple_of(3600);
        Self { seed, percent, period_s, episode_s: (seconds / 20).clamp(10, 300) }
    }

    /// Seconds by which the row that `machine` sends in second `second` of the run is late: 0, or
    /// hours to weeks, every order of magnitude alike.
    pub fn behind_s(&self, machine: usize, second: u64) -> u64 {
        if self.percent <= 0.0 {
            return 0;
        }
        let mut dice = Random::at(self.seed, [machine as u64, second / self.episode_s]);
        if !dice.percent(self.percent) {
            return 0;
        }
        let most = (BEHIND_S_MAX / self.period_s).max(1) as f64;
        let periods = (dice.unit() * most.ln()).exp().round().max(1.0) as u64;
        periods * self.period_s
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_share_is_right_and_delays_are_hours_to_weeks() {
        let late = Lateness::new(3, 30.0, 14_400);
        let delays: Vec<u64> = (0..50usize)
            .flat_map(|m| (0..14_400).step_by(10).map(move |s| (m, s)))
            .map(|(m, s)| late.behind_s(m, s))
            .collect();
        let share = delays.iter().filter(|d| **d > 0).count() as f64 / delays.len() as f64;
        assert!((0.26..0.34).contains(&share), "{share}");
        let some = delays.iter().filter(|d| **d > 0);
        assert!(some.clone().all(|d| (PERIOD_S_MIN..=BEHIND_S_MAX).contains(d)));
        assert!(some.clone().any(|d| *d < 24 * 3600) && some.clone().any(|d| *d > 14 * 24 * 3600));
        assert!((0..100).all(|s| Lateness::new(3, 0.0, 100).behind_s(1, s) == 0));
    }

    #[test]
    fn no_machine_sends_one_time_twice() {
        for seconds in [60, 7_200, 10_000] {
            let late = Lateness::new(9, 60.0, seconds);
            let times: BTreeSet<i64> =
                (0..seconds).map(|s| s as i64 - late.behind_s(4, s) as i64).collect();
            assert_eq!(times.len() as u64, seconds);
        }
    }
}
