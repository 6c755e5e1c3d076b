//! The crash suite: the real queue and the real delivery against a model of the server, on
//! simulated disk and clock.
//!
//! Owns: what must hold after any history (`world`), the histories (`cuts`, `faults`), and the proof
//! that the suite sees what it looks for (`planted_bugs`). Every history is fixed by its seed.

mod cuts;
mod faults;
mod planted_bugs;
mod server;
mod world;

pub(crate) use world::{Keys, group};
