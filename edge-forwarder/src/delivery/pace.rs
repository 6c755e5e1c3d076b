//! Which lane goes next, and how much of it may be on its way.
//!
//! Owns: the share between live and backfill, the byte caps of each, the window of backfill.
//! Never: holds up a lane for a share that the other does not use.
//! Live goes first; while both have rows, backfill gets its share of the bytes. What backfill has on
//! its way stands before live rows on a slow link, so it is kept to about half a second of what the
//! server was seen to take.

use std::time::Duration;

/// Which rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Rows that came after the last long outage, newest epoch.
    Live,
    /// Rows from before.
    Backfill,
}

/// How the link is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Percent of the bytes for backfill while both lanes have rows, 0 to 100.
    pub backfill_percent: u8,
    /// Bytes per second of live rows at most; 0: no cap.
    pub live_bytes_per_s: u64,
    /// Bytes per second of backfill at most; 0: no cap.
    pub backfill_bytes_per_s: u64,
    /// A connection that finds more rows than this waiting in the newest epoch makes them backfill;
    /// `u64::MAX`: everything is sent in the order in which it came.
    pub split_rows: u64,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            backfill_percent: 30,
            live_bytes_per_s: 0,
            backfill_bytes_per_s: 0,
            // 10,000 rows take a second on a thin link, so less is not worth an epoch.
            split_rows: 10_000,
        }
    }
}

/// Bytes of backfill on its way: at least, and at first.
const WINDOW: (usize, usize) = (64 << 10, 256 << 10);
/// How far a lane may be ahead of its share, in bytes.
const AHEAD_BYTES: i64 = 256 << 10;
/// How long acks are counted before the rate is judged.
const JUDGE: Duration = Duration::from_millis(500);

/// A byte cap: what was not used for a second is forgone.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_s: u64,
    /// Bytes that may go now; below zero after a large message.
    left: i64,
    at: Duration,
}

impl Bucket {
    fn new(per_s: u64, now: Duration) -> Self {
        Self { per_s, left: i64::try_from(per_s).unwrap_or(i64::MAX), at: now }
    }

    fn is_open(&mut self, now: Duration) -> bool {
        if self.per_s == 0 {
            return true;
        }
        let passed = now.saturating_sub(self.at).as_micros();
        let more = passed.saturating_mul(u128::from(self.per_s)) / 1_000_000;
        if more > 0 {
            let full = i64::try_from(self.per_s).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(i64::try_from(more).unwrap_or(full)).min(full);
            self.at = now;
        }
        self.left > 0
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// See the module head.
#[derive(Debug)]
pub struct Pace {
    share: Share,
    live: Bucket,
    backfill: Bucket,
    /// Bytes times percent that live is ahead of its share.
    ahead: i64,
    window: usize,
    window_max: usize,
    acked: usize,
    judged: Duration,
}

impl Pace {
    /// A new connection, of which backfill may fill `window_max` bytes at most.
    pub fn new(share: Share, window_max: usize, now: Duration) -> Self {
        Self {
            live: Bucket::new(share.live_bytes_per_s, now),
            backfill: Bucket::new(share.backfill_bytes_per_s, now),
            share,
            ahead: 0,
            window: WINDOW.1.min(window_max),
            window_max,
            acked: 0,
            judged: now,
        }
    }

    /// The lanes that may send, the one whose turn it is first. `flying`: bytes of backfill on
    /// their way.
    pub fn order(&mut self, now: Duration, flying: usize) -> [Option<Lane>; 2] {
        let live = self.live.is_open(now).then_some(Lane::Live);
        let open = self.backfill.is_open(now) && flying < self.window;
        let backfill = open.then_some(Lane::Backfill);
        if self.ahead > 0 { [backfill, live] } else { [live, backfill] }
    }

    /// Something was sent.
    pub fn sent(&mut self, lane: Lane, bytes: usize) {
        let weight = i64::try_from(bytes).unwrap_or(AHEAD_BYTES).min(AHEAD_BYTES);
        let percent = i64::from(self.share.backfill_percent.min(100));
        let bound = AHEAD_BYTES * 100;
        self.ahead = match lane {
            Lane::Live => {
                self.live.take(bytes);
                self.ahead + weight * percent
            }
            Lane::Backfill => {
                self.backfill.take(bytes);
                self.ahead - weight * (100 - percent)
            }
        }
        .clamp(-bound, bound);
    }

    /// Bytes of either lane were acknowledged.
    pub fn acked(&mut self, bytes: usize, now: Duration) {
        self.acked += bytes;
        let passed = now.saturating_sub(self.judged);
        if passed < JUDGE {
            return;
        }
        let millis = usize::try_from(passed.as_millis()).unwrap_or(usize::MAX).max(1);
        let half_second = self.acked.saturating_mul(500) / millis;
        // It grows by doubling only, because a window that was small saw a small rate.
        self.window = half_second
            .saturating_mul(2)
            .min(self.window.saturating_mul(2))
            .clamp(WINDOW.0, self.window_max.max(WINDOW.0));
        (self.acked, self.judged) = (0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(share: Share) -> Pace {
        Pace::new(share, 6 << 20, Duration::ZERO)
    }

    /// Sends messages of 1,000 bytes while both lanes have rows; bytes of (live, backfill).
    fn both(pace: &mut Pace, messages: usize) -> (usize, usize) {
        let (mut live, mut backfill) = (0, 0);
        for _ in 0..messages {
            let turn = pace.order(Duration::ZERO, 0).into_iter().flatten().next();
            match turn {
                Some(Lane::Live) => live += 1_000,
                Some(Lane::Backfill) => backfill += 1_000,
                None => break,
            }
            pace.sent(turn.unwrap(), 1_000);
        }
        (live, backfill)
    }

    #[test]
    fn e6_live_goes_first_and_backfill_gets_its_share() {
        let mut even = pace(Share::default());
        assert_eq!(even.order(Duration::ZERO, 0)[0], Some(Lane::Live));
        assert_eq!(both(&mut even, 1_000), (700_000, 300_000));
        let all = Share { backfill_percent: 0, ..Share::default() };
        assert_eq!(both(&mut pace(all), 1_000), (1_000_000, 0));
    }

    #[test]
    fn e6_what_one_lane_did_not_use_is_not_owed_to_it_for_long() {
        let mut pace = pace(Share::default());
        // An hour without live rows.
        for _ in 0..1_000_000 {
            pace.sent(Lane::Backfill, 1_000);
        }
        let (live, backfill) = both(&mut pace, 4_000);
        assert!(live <= 3_400_000 && backfill >= 600_000, "{live} {backfill}");
    }

    #[test]
    fn e6_a_byte_cap_holds_a_lane_and_not_the_other() {
        let share = Share { backfill_bytes_per_s: 10_000, ..Share::default() };
        let mut pace = pace(share);
        let mut sent = 0;
        for second in 0..10 {
            let now = Duration::from_secs(second);
            while pace.order(now, 0).contains(&Some(Lane::Backfill)) {
                pace.sent(Lane::Backfill, 1_000);
                sent += 1_000;
            }
            assert!(pace.order(now, 0).contains(&Some(Lane::Live)));
        }
        assert_eq!(sent, 100_000);
    }

    #[test]
    fn e6_on_a_slow_link_little_backfill_is_on_its_way() {
        let mut pace = pace(Share::default());
        // 1 Mbit/s: 125,000 bytes per second.
        for tick in 1..=40u64 {
            pace.acked(62_500, Duration::from_millis(tick * 500));
        }
        assert!(pace.window <= 125_000, "{}", pace.window);
        assert!(!pace.order(Duration::from_secs(20), 125_000).contains(&Some(Lane::Backfill)));
        // 1 Gbit/s.
        for tick in 41..=80u64 {
            pace.acked(62_500_000, Duration::from_millis(tick * 500));
        }
        assert_eq!(pace.window, 6 << 20);
    }
}
