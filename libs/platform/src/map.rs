//! Hash maps whose order does not change from run to run.
//!
//! Owns: the hasher of every map in the tree, so that a simulation replays exactly.
//! Never: is used for keys that an outsider chooses without [`Seeded::new`] from real entropy.

use std::hash::BuildHasher;

use crate::entropy::{Entropy, random_u64};

/// Builds xxh3 hashers from one seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seeded(u64);

impl Seeded {
    /// A seed that an outsider cannot guess, for maps whose keys come from outside.
    pub fn new(entropy: &dyn Entropy) -> Self {
        Self(random_u64(entropy))
    }
}

impl BuildHasher for Seeded {
    type Hasher = xxhash_rust::xxh3::Xxh3;

    fn build_hasher(&self) -> Self::Hasher {
        xxhash_rust::xxh3::Xxh3::with_seed(self.0)
    }
}

/// A hash map with a known seed.
pub type Map<K, V> = hashbrown::HashMap<K, V, Seeded>;
/// A hash set with a known seed.
pub type Set<K> = hashbrown::HashSet<K, Seeded>;
