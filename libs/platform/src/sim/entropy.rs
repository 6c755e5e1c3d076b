//! Seeded randomness (xorshift64*, S. Vigna 2014). Deterministic; never protects real data.

use std::sync::Mutex;

use crate::entropy::Entropy;

/// A seeded generator: the same seed gives the same bytes in the same order of calls.
#[derive(Debug)]
pub struct SimEntropy(Mutex<u64>);

impl SimEntropy {
    /// Any seed is fine; 0 is mapped to a fixed non-zero state.
    pub fn seeded(seed: u64) -> Self {
        // SplitMix64's increment keeps neighbouring seeds apart and the state off zero.
        let mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self(Mutex::new(mixed | 1))
    }

    /// The next number.
    pub fn next_u64(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound` (`bound` must not be 0).
    pub fn below(&self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
