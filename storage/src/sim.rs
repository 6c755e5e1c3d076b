//! Storage as a whole on a simulated disk, beside a reference model: what is acknowledged is
//! there, once, after any crash; and the proof that this suite would notice if it were not.

mod check;
mod columns;
mod crash;
mod damage;
mod fleet;
mod fork;
mod fsck;
mod full_disk;
mod keys;
mod machine;
mod memory;
pub(crate) mod model;
mod pins;
mod planted_bugs;
mod reference;
mod retention;
pub(crate) mod rows;
mod schedule;
mod seeds;
mod soak;
mod traffic;
mod wire;
pub(crate) mod world;
mod zombie;
