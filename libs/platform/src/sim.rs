//! Simulated twins of clock, entropy, disk and network: seeded, deterministic, able to fail.
//!
//! Owns: the fault model (see each file's head). Never: used by a binary on real data.

pub mod clock;
pub mod disk;
pub mod entropy;
pub mod net;

pub use clock::SimClock;
pub use disk::SimDisk;
pub use entropy::SimEntropy;
pub use net::SimNet;
