//! Randomness as an argument.
//!
//! Owns: the only reads of the operating system's generator.
//! Never: offers a global generator; a caller that needs randomness is handed an [`Entropy`].

use std::fmt::Debug;

/// A source of random bytes. The real one is cryptographically secure; the simulated one is
/// seeded and must never protect real data.
pub trait Entropy: Send + Sync + Debug {
    /// Fills `buf` with random bytes.
    fn fill(&self, buf: &mut [u8]);
}

/// `N` random bytes.
pub fn random_bytes<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut out = [0u8; N];
    entropy.fill(&mut out);
    out
}

/// A uniformly random 64-bit number.
pub fn random_u64(entropy: &dyn Entropy) -> u64 {
    u64::from_le_bytes(random_bytes(entropy))
}

/// The operating system's generator, through aws-lc-rs.
#[derive(Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    #[expect(
        clippy::expect_used,
        reason = "no key may be made when the generator fails; stopping is the only safe answer"
    )]
    fn fill(&self, buf: &mut [u8]) {
        aws_lc_rs::rand::fill(buf).expect("the operating system's random generator failed");
    }
}
