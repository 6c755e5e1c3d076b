//! Numbers that only look random.
//!
//! Owns: the one generator of all workloads. Same seed, same numbers, on every machine.

/// A small, fast generator of good numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of one seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers that belong to a seed and a place, whatever was drawn before.
    pub fn at(seed: u64, place: [u64; 2]) -> Self {
        let mut mixed = Self(seed);
        for part in place {
            mixed.0 = mixed.next_u64() ^ part;
        }
        mixed
    }

    /// Whether something that happens in `percent` of all cases happens now.
    pub fn percent(&mut self, percent: f64) -> bool {
        self.unit() * 100.0 < percent
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A step of the walk: normally distributed, mean 0, deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let u = self.unit().max(f64::MIN_POSITIVE);
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// A number in 0..n; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_own_numbers_and_they_spread() {
        let first = |place| Random::at(7, place).next_u64();
        assert_eq!(first([1, 2]), first([1, 2]));
        assert_ne!(first([1, 2]), first([2, 1]));
        let mut random = Random::seeded(1);
        let hits = (0..10_000).filter(|_| random.percent(30.0)).count();
        assert!((2_800..3_200).contains(&hits), "{hits} of 10000 at 30 %");
        assert_eq!(random.below(0), 0);
    }
}
