//! The only crate that may touch the clock, entropy, the disk, the network and the process.
//!
//! Owns: narrow traits for each of these, their real implementations, their simulated twins
//! (`sim`), the one durable rename in the tree (`durable`), a state and its changes (`changes`), bounded queues with a gauge
//! (`queue`), memory against one figure (`budget`, `memory`), metric names (`metric`) and numbered invariants (`invariant`).
//! Never: knows tenants, rows, keys or formats.

pub mod budget;
pub mod changes;
pub mod clock;
pub mod disk;
pub mod durable;
pub mod entropy;
pub mod invariant;
pub mod map;
pub mod memory;
pub mod metric;
pub mod net;
pub mod planted;
pub mod queue;
pub mod sim;
