//! Pauses between attempts: doubled each time, with jitter, so that nothing spins on an error and a
//! fleet does not come back as one.
//!
//! Owns: the arithmetic. Never: sleeps; the caller has the clock.

use std::time::Duration;

use millrace_platform::entropy::{Entropy, random_u64};

/// See the module head.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`, each up to half longer by chance.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self, entropy: &dyn Entropy) -> Duration {
        let half = u64::try_from(self.next.as_millis() / 2).unwrap_or(u64::MAX - 1);
        let pause = self.next + Duration::from_millis(random_u64(entropy) % (half + 1));
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// Something worked.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use millrace_platform::sim::SimEntropy;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_between_devices() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, longest);
        let dice = SimEntropy::seeded(1);
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause(&dice)).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let base = (first * 2u32.pow(u32::try_from(n).unwrap())).min(longest);
            assert!(*pause >= base && *pause <= base + base / 2, "{n}: {pause:?}");
        }
        let other: Vec<Duration> = {
            let mut backoff = Backoff::new(first, longest);
            let dice = SimEntropy::seeded(2);
            (0..12).map(|_| backoff.pause(&dice)).collect()
        };
        assert_ne!(pauses, other);
        backoff.reset();
        assert!(backoff.pause(&dice) <= first + first / 2);
    }
}
