//! The trusted clock: the only notion of now by which anything is deleted.
//!
//! Owns: how far the wall clock is believed. Trusted time goes on with the monotonic clock from what
//! the last durable manifest record says. The wall clock may be ahead of that by a small credit
//! alone (restarts, corrections), which is used up and grows back slowly; a clock that is further
//! ahead is not believed at all until an operator says that it is right. It never runs back, and
//! while the wall clock is more than an hour behind it nothing may be dropped.
//! Never: is ahead of true time by more than [`MARGIN_NS`] as long as the monotonic clock and each
//! operator's word are right; that margin is added to every limit before anything is dropped.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::planted::{Bug, planted};

/// The largest credit, and how much later than its limit something is dropped: half a day.
pub const MARGIN_NS: i64 = 12 * HOUR_NS;
const HOUR_NS: i64 = 3600 * 1_000_000_000;
/// Of each day that passes, an hour comes back.
const CREDIT_PART: i64 = 24;
/// A wall clock that is further behind keeps everything where it is.
const BEHIND_NS: i64 = HOUR_NS;

/// What of the clock is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockMark {
    /// Trusted time, ns since 1970.
    pub trusted_ns: i64,
    /// Credit that is left, ns.
    pub credit_ns: i64,
}

/// What the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockState {
    /// Trusted time, ns since 1970.
    pub now_ns: i64,
    /// How far the wall clock is ahead of what is believed, ns; 0 if it is believed.
    pub ahead_ns: i64,
    /// How far it is behind trusted time, ns.
    pub behind_ns: i64,
}

impl ClockState {
    /// Whether things may be dropped: the wall clock is not behind what was true already.
    pub fn may_drop(&self) -> bool {
        self.behind_ns <= BEHIND_NS
    }

    /// Whether somebody has to look at the clock.
    pub fn wrong(&self) -> bool {
        self.ahead_ns > 0 || !self.may_drop()
    }
}

/// See the module head.
#[derive(Debug, Clone)]
pub(crate) struct TrustedClock {
    mark: ClockMark,
    /// Time that the monotonic clock supports: `anchor_ns` was true at `anchor`.
    anchor_ns: i64,
    anchor: Duration,
    /// When credit was last added.
    earned: Duration,
}

fn ns(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

impl TrustedClock {
    /// Goes on from what is durable; without that the wall clock is all there is.
    pub(crate) fn start(mark: Option<ClockMark>, wall_ns: i64, now: Duration) -> Self {
        let mark = mark.unwrap_or(ClockMark { trusted_ns: wall_ns, credit_ns: MARGIN_NS });
        Self { mark, anchor_ns: mark.trusted_ns, anchor: now, earned: now }
    }

    /// Looks at the clocks.
    pub(crate) fn tell(&mut self, wall_ns: i64, now: Duration) -> ClockState {
        if planted(Bug::ClockTrusted) {
            self.mark.trusted_ns = wall_ns;
            return ClockState { now_ns: wall_ns, ahead_ns: 0, behind_ns: 0 };
        }
        let earned = ns(now.saturating_sub(self.earned)) / CREDIT_PART;
        if earned > 0 {
            self.mark.credit_ns = self.mark.credit_ns.saturating_add(earned).min(MARGIN_NS);
            self.earned = now;
        }
        let supported = self.anchor_ns.saturating_add(ns(now.saturating_sub(self.anchor)));
        let lead = wall_ns.saturating_sub(supported);
        let mut ahead_ns = 0;
        if lead <= 0 {
            self.mark.trusted_ns = self.mark.trusted_ns.max(wall_ns);
        } else if lead <= self.mark.credit_ns {
            self.mark.credit_ns -= lead;
            (self.anchor_ns, self.anchor) = (wall_ns, now);
            self.mark.trusted_ns = self.mark.trusted_ns.max(wall_ns);
        } else {
            ahead_ns = lead;
            self.mark.trusted_ns = self.mark.trusted_ns.max(supported);
        }
        let now_ns = self.mark.trusted_ns;
        ClockState { now_ns, ahead_ns, behind_ns: now_ns.saturating_sub(wall_ns).max(0) }
    }

    /// An operator says that the wall clock is right.
    pub(crate) fn believe(&mut self, wall_ns: i64, now: Duration) {
        self.mark.trusted_ns = wall_ns;
        (self.anchor_ns, self.anchor) = (wall_ns, now);
    }

    /// What a record says of it.
    pub(crate) fn mark(&self) -> ClockMark {
        self.mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const DAY_NS: i64 = 24 * HOUR_NS;
    const YEAR_NS: i64 = 365 * DAY_NS;

    #[test]
    fn r1_a_clock_ten_years_ahead_moves_nothing_and_is_told_of() {
        let mut clock = TrustedClock::start(None, YEAR_NS, Duration::ZERO);
        assert_eq!(clock.tell(YEAR_NS + DAY_NS, DAY).now_ns, YEAR_NS + DAY_NS);
        for day in 2..1000 {
            let wall = YEAR_NS + 10 * YEAR_NS + i64::from(day) * DAY_NS;
            let told = clock.tell(wall, DAY * day);
            assert_eq!(told.now_ns, YEAR_NS + i64::from(day) * DAY_NS, "day {day}");
            assert!(told.wrong() && told.ahead_ns == 10 * YEAR_NS);
        }
        clock.believe(20 * YEAR_NS, DAY * 1000);
        let told = clock.tell(20 * YEAR_NS, DAY * 1000);
        assert!(!told.wrong() && told.now_ns == 20 * YEAR_NS);
    }

    #[test]
    fn a_clock_set_back_changes_nothing_and_nothing_is_dropped_meanwhile() {
        let mut clock = TrustedClock::start(None, YEAR_NS, Duration::ZERO);
        clock.tell(YEAR_NS, Duration::ZERO);
        let told = clock.tell(DAY_NS, DAY);
        assert_eq!((told.now_ns, told.behind_ns), (YEAR_NS, YEAR_NS - DAY_NS));
        assert!(!told.may_drop() && told.wrong());
        // Right again: the time that passed is believed, since the monotonic clock has seen it.
        let told = clock.tell(YEAR_NS + 2 * DAY_NS, DAY * 2);
        assert_eq!((told.now_ns, told.wrong()), (YEAR_NS + 2 * DAY_NS, false));
    }

    #[test]
    fn a_restart_is_believed_within_the_credit_which_is_durable_and_grows_back() {
        let mut clock = TrustedClock::start(None, 0, Duration::ZERO);
        clock.tell(0, Duration::ZERO);
        let off = |mark: ClockMark, hours: i64| {
            let mut next = TrustedClock::start(Some(mark), mark.trusted_ns, Duration::ZERO);
            let told = next.tell(mark.trusted_ns + hours * HOUR_NS, Duration::ZERO);
            (next, told.ahead_ns == 0)
        };
        let (clock, believed) = off(clock.mark(), 8);
        assert!(believed);
        let (_, believed) = off(clock.mark(), 5);
        assert!(!believed, "13 hours in a row would be more than the margin");
        let (mut clock, believed) = off(clock.mark(), 4);
        assert!(believed && clock.mark().credit_ns == 0);
        let told = clock.tell(clock.mark().trusted_ns + 2 * DAY_NS, DAY * 2);
        assert_eq!((told.ahead_ns, clock.mark().credit_ns), (0, 2 * HOUR_NS));
    }
}
