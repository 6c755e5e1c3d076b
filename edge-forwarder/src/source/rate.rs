//! A cap on how much a source may hand over.
//!
//! Owns: the arithmetic of rows per second. Never: drops anything: whoever is over it waits.

use std::time::Duration;

/// See the module head.
#[derive(Debug, Clone)]
pub struct Rate {
    /// Rows per second.
    per_second: u64,
    /// When what was taken so far is paid for, of monotonic time.
    paid: Duration,
}

/// How far a source may be ahead: a second's worth at once.
const AHEAD: Duration = Duration::from_secs(1);

impl Rate {
    /// At most so many rows per second.
    pub fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), paid: Duration::ZERO }
    }

    /// Takes rows; how long to wait before the next.
    pub fn take(&mut self, rows: u64, now: Duration) -> Duration {
        let nanos = u128::from(rows) * 1_000_000_000 / u128::from(self.per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid = self.paid.max(now).saturating_add(cost);
        self.paid.saturating_sub(now).saturating_sub(AHEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_second_is_free_and_the_rest_waits() {
        let mut rate = Rate::new(100);
        let at = Duration::from_secs(50);
        assert_eq!(rate.take(100, at), Duration::ZERO);
        assert_eq!(rate.take(50, at), Duration::from_millis(500));
        assert_eq!(rate.take(10, at + Duration::from_secs(9)), Duration::ZERO);
        assert!(rate.take(u64::MAX, at) > AHEAD);
    }
}
