//! Storage as a whole on a simulated disk, beside a reference model: what is acknowledged is
//! there, once, after any crash; and the proof that this suite would notice if it were not.

mod columns;
mod crash;
mod damage;
mod fork;
mod keys;
mod model;
mod pins;
mod planted_bugs;
mod rows;
pub(crate) mod world;
mod zombie;
