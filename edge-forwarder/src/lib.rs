//! `millrace-edge`: streams machine data to a Millrace server, exactly once, through a sealed
//! queue that survives power cuts.
//!
//! Owns: identity, queue, sources, uplink. Never: opens a listening socket; sends a row that is
//! not durable in its queue; forgets a row that the server has not acknowledged.

mod backoff;
mod check;
pub mod cli;
#[cfg(test)]
mod crash;
mod delivery;
mod gap;
mod identity;
mod intake;
mod mapping;
mod planted;
mod quarantine;
mod queue;
mod settings;
mod source;
mod status;
mod supervisor;
mod uplink;
