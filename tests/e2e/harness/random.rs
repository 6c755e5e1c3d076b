//! Seeded randomness, so that a failure can be replayed: `MILLRACE_TEST_SEED=7`.
//!
//! Owns: the seed of a run, printed when a test starts.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: short, and good enough to choose moments and lengths.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of numbers of one seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A new seed for each run unless `MILLRACE_TEST_SEED` names one; printed either way.
    pub fn for_test(name: &str) -> Self {
        let fresh = || {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::from(d.subsec_nanos()))
        };
        let seed = std::env::var("MILLRACE_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(fresh);
        eprintln!("{name}: replay with MILLRACE_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next_u64() % (high - low).max(1)
    }
}
